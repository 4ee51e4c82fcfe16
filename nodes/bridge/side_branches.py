"""Any LoRA, as one low-rank branch for each layer of a MODEL.

The core reads and checks the file; ComfyUI's own tables say which layer of the MODEL a name means,
for all its architectures, and the core's where they do not (FLUX.2 of diffusers in older versions).
Files that split a fused layer (to_q, to_k, to_v of qkv) become one
branch.

Legend: r rank, summed over the pieces of a layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...chunk_grpo_core.lora.architectures import likely_architecture, some_names
from ...chunk_grpo_core.lora.contents import read_lora, split_prefix
from ...chunk_grpo_core.lora.continuing import continued_state
from ...chunk_grpo_core.lora.layers import LoraLayer, Piece, fused
from ...chunk_grpo_core.lora.name_table import twice
from ...chunk_grpo_core.lora.naming import renamed
from .adapter import is_linear

__all__ = ["native_layers", "side_branches", "start_state"]

logger = logging.getLogger(__name__)

_ROOT, _WEIGHT = "diffusion_model.", ".weight"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a MODEL the update of a layer of a file stands."""

    module: str
    """Name of a linear layer inside the diffusion model."""
    first: int
    """First row that it changes."""
    rows: int
    """Number of rows that it changes."""
    order: Callable[[Tensor], Tensor] | None
    """Puts the rows in the MODEL's order."""


def side_branches(
    model: ModelPatcher, lora: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Find the layers of ``model`` that ``lora`` changes.

    Args:
        model: Any native MODEL.
        lora: A LORA_MODEL, or the content of a LoRA file.

    Returns:
        Name of a linear layer inside the diffusion model -> A, shape (r, in), and B, shape
        (out, r), with the scale alpha / rank folded into B. CPU float32, free for autograd.

    Raises:
        ValueError: See :func:`native_layers`.
    """
    with torch.inference_mode(False):  # else nothing could be trained on top
        layers = native_layers(model, lora)
        linears = sum(is_linear(module) for module in model.model.diffusion_model.modules())
        logger.info("the LoRA acts on %d of the MODEL's %d linear layers", len(layers), linears)
        return {
            name: (layer.a.to(torch.float32, copy=True), layer.b.float() * layer.scale)
            for name, layer in layers.items()
        }


def start_state(
    model: ModelPatcher, lora: Mapping[str, Tensor], fresh: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Weights with which an adapter of ``model`` computes exactly what a LoRA does, to train on.

    Args:
        model: The MODEL that is trained.
        lora: A LORA_MODEL, or the content of a LoRA file.
        fresh: ``state_dict()`` of the adapter, before any training.
        scale: Scale of the adapter.

    Raises:
        ValueError: See :func:`native_layers`; or the adapter lacks a layer, or has a lower rank.
    """
    return continued_state(native_layers(model, lora), fresh, scale)


def native_layers(model: ModelPatcher, lora: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """Name the layers of a LoRA as ``model`` does.

    Args:
        model: Any native MODEL.
        lora: A LORA_MODEL, or the content of a LoRA file, in any layout that
            :func:`~chunk_grpo_core.lora.contents.read_lora` reads. Layers of text encoders are left
            out, and logged.

    Returns:
        Name of a linear layer inside the diffusion model -> its update.

    Raises:
        ValueError: It is not a plain LoRA; or the MODEL lacks one of its layers, or has another
            size there.
    """
    contents, places = read_lora(lora), _places(model)
    layers = _named(contents.layers, places)
    if strange := sorted(layers.keys() - places.keys()):
        architecture = likely_architecture(strange)
        raise ValueError(
            f"{len(strange)} of the {len(contents.layers)} layers of this LoRA are none of this "
            f"MODEL ({type(model.model).__name__}): {some_names(strange)}. "
            + (f"They look like {architecture}; use" if architecture else "Use")
            + " the model that the LoRA was made for"
        )
    pieces: dict[str, list[Piece]] = {}
    for name, layer in layers.items():
        place = places[name]
        linear: Any = model.model.diffusion_model.get_submodule(place.module)
        if (layer.a.shape[1], layer.b.shape[0]) != (linear.in_features, place.rows):
            raise ValueError(
                f"{name} maps {layer.a.shape[1]} to {layer.b.shape[0]} numbers in this LoRA, and "
                f"{linear.in_features} to {place.rows} in this MODEL; it was trained on another one"
            )
        if place.order is not None:
            layer = replace(layer, b=place.order(layer.b))
        piece = Piece(layer=layer, first=place.first)
        others = pieces.setdefault(place.module, [])
        if any(piece.first < other.end and other.first < piece.end for other in others):
            raise twice(place.module)
        others.append(piece)
    modules = model.model.diffusion_model.get_submodule
    return {name: fused(group, _outputs(modules(name))) for name, group in pieces.items()}


def _named(layers: Mapping[str, LoraLayer], places: Mapping[str, _Place]) -> dict[str, LoraLayer]:
    """Layers under names that have a place; what ComfyUI does not know is named by our own tables,
    if all of it has a place then.

    Raises:
        ValueError: A layer has not the shape of its family's, or is there twice.
    """
    known = {name: layer for name, layer in layers.items() if name in places}
    others = {name: layer for name, layer in layers.items() if name not in places}
    moved = renamed(others, {place.module for place in places.values()}) if others else None
    if moved is None or not moved.keys() <= places.keys():
        return dict(layers)
    if doubled := known.keys() & moved.keys():
        raise twice(min(doubled))
    return known | moved


def _places(model: ModelPatcher) -> dict[str, _Place]:
    """The linear layers of a MODEL by every name that ComfyUI knows for them, without prefixes, and
    with underscores for dots too.
    """
    network = model.model.diffusion_model
    linears = {name: module for name, module in network.named_modules() if is_linear(module)}
    places: dict[str, _Place] = {}
    for alias, target in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        key, offset, order = (target, None, None) if isinstance(target, str) else _whole(target)
        module = key.removeprefix(_ROOT).removesuffix(_WEIGHT)
        if not (key.startswith(_ROOT) and key.endswith(_WEIGHT) and module in linears):
            continue
        first, rows = offset or (0, _outputs(linears[module]))
        _, name = split_prefix(alias)
        place = _Place(module, first, rows, order)
        places[name] = places[name.replace(".", "_")] = place
    for module, linear in linears.items():  # names of the MODEL itself come before all others
        place = _Place(module, 0, _outputs(linear), None)
        places[module] = places[module.replace(".", "_")] = place
    return places


def _whole(
    target: tuple[Any, ...],
) -> tuple[str, tuple[int, int] | None, Callable[[Tensor], Tensor] | None]:
    """Weight, first row and number of rows, and order of the rows: an entry of ComfyUI's table."""
    key, offset = target[:2]
    order = target[2] if len(target) > 2 else None
    if offset is not None and offset[0] != 0:  # columns: no entry has any today
        return "", None, None
    return key, offset and (offset[1], offset[2]), order


def _outputs(linear: nn.Module) -> int:
    outputs: Any = linear.out_features
    return outputs
