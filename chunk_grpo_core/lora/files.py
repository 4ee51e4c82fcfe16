"""LoRA files that load everywhere: written, read, converted, and trained on.

The native file serves ComfyUI, for every architecture. For FLUX.1 there is the diffusers file too,
which both diffusers' ``load_lora_weights`` and ComfyUI's loaders take. ``lora/layers.py`` defines
both layouts.

Legend: r rank of the file, R rank of the adapter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk.atomic import whole_file
from ..optional import require
from .flux_names import diffusers_to_native, native_to_diffusers
from .layers import Layout, LoraLayer, layer_tensors, parse_lora

__all__ = [
    "continued_state",
    "convert_lora",
    "diffusers_lora",
    "load_lora",
    "native_lora",
    "save_lora",
]

_RENAME = {"native": native_to_diffusers, "diffusers": diffusers_to_native}
#: Where diffusers writes its peft configuration, alpha included.
_PEFT_CONFIG = "lora_adapter_metadata"


def native_lora(adapter: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Name an adapter's weights as ComfyUI does.

    Args:
        adapter: ``<native module>.lora_A.weight`` (r, in) and ``.lora_B.weight`` (out, r).
        alpha: Numerator of the scale alpha / r, see :attr:`~.adapter.LoraConfig.file_alpha`.

    Returns:
        Contiguous CPU tensors; one scalar ``.alpha`` for each module.
    """
    return layer_tensors(_adapter_layers(adapter, alpha), "native")


def diffusers_lora(adapter: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Name a diffusers adapter's weights for diffusers and ComfyUI, scale folded into B.

    Args:
        adapter: ``<diffusers module>.lora_A.weight`` and ``.lora_B.weight``.
        alpha: Numerator of the scale alpha / r, see :attr:`~.adapter.LoraConfig.file_alpha`.
    """
    return layer_tensors(_adapter_layers(adapter, alpha), "diffusers")


def convert_lora(lora: Mapping[str, Tensor], to: Layout) -> dict[str, Tensor]:
    """Write a LoRA in the other layout; the function is the same.

    Tensors keep their type and, when the scale is 1, their bits. Folding a scale other than 1 into
    B gives float32.

    Args:
        lora: A file's tensors in either layout.
        to: Layout wanted. What is in this layout already only gets the standard names of factors.

    Raises:
        ValueError: It is not a plain LoRA, or it must be renamed and is not one of FLUX.1.
    """
    layout, layers = parse_lora(lora)
    return layer_tensors(layers if layout == to else _RENAME[layout](layers), to)


def continued_state(
    lora: Mapping[str, Tensor], fresh: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Weights with which an adapter computes exactly what a LoRA file does, to train on from there.

    A file of rank r < R fills the first r ranks. The others have their fresh A and B = 0: they
    change nothing yet and can learn. The scale of the file goes into B.

    Args:
        lora: A file's tensors in either layout; FLUX.1 is renamed if the adapter needs it.
        fresh: ``state_dict()`` of the adapter, before any training.
        scale: Scale of the adapter, :attr:`~chunk_grpo_core.lora.adapter.LoraConfig.scale`.

    Returns:
        For ``load_state_dict()`` of the adapter. Layers that the file lacks stay fresh.

    Raises:
        ValueError: The file has layers that the adapter lacks, other shapes, or a higher rank.
    """
    suffixes = (".lora_A.weight", ".lora_B.weight")
    module_names = {name.removesuffix(suffixes[0]) for name in fresh if name.endswith(suffixes[0])}
    layers, is_renamed = _layers_named_as(module_names, lora)
    if strange := sorted(layers.keys() - module_names):
        raise ValueError(
            f"the LoRA to continue has {len(strange)} layers that the adapter lacks, for example "
            f"{strange[0]}, while the adapter has, for example, {min(module_names)}; use the "
            "model that it was made for, and lora.targets that take its layers"
        )
    state = {
        name: torch.zeros_like(tensor) if name.endswith(suffixes[1]) else tensor.clone()
        for name, tensor in fresh.items()
    }
    rank = max(state[f"{name}{suffixes[0]}"].shape[0] for name in module_names)
    _check_rank(layers, rank, is_renamed)
    for name, layer in layers.items():
        a, b = (state[name + suffix] for suffix in suffixes)
        if (layer.a.shape[1], layer.b.shape[0]) != (a.shape[1], b.shape[0]):
            raise ValueError(
                f"{name} maps {layer.a.shape[1]} to {layer.b.shape[0]} numbers in the LoRA to "
                f"continue, and {a.shape[1]} to {b.shape[0]} in this model"
            )
        a[: layer.rank] = layer.a
        b[:, : layer.rank] = layer.b.float() * (layer.scale / scale)
    return state


def save_lora(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Write a LoRA file (safetensors), never half written.

    Args:
        tensors: From one of the functions above.
        path: Ends in .safetensors; its folder is made if needed.
        metadata: Facts to keep in the file's header, text only.

    Raises:
        ValueError: The path has another ending.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a LoRA file must end in .safetensors, got {path.name!r}")
    save_file = require("safetensors.torch", "To write a LoRA file").save_file
    with whole_file(path) as temporary:
        save_file(dict(tensors), temporary, metadata=dict(metadata))
    return path


def load_lora(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a LoRA file.

    diffusers may keep the scale in the header, where other programs do not look; it becomes alpha
    tensors here.

    Returns:
        Tensors and metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a safetensors file, or its header has scales that differ by layer.
    """
    path = Path(path)
    safetensors = require("safetensors", "To read a LoRA file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from error
    if written := metadata.pop(_PEFT_CONFIG, None):
        tensors |= _header_alphas(tensors, json.loads(written))
    return tensors, metadata


def _adapter_layers(adapter: Mapping[str, Tensor], alpha: float) -> dict[str, LoraLayer]:
    a, b = ".lora_A.weight", ".lora_B.weight"
    return {
        name.removesuffix(a): LoraLayer(
            a=tensor.float(), b=adapter[name.replace(a, b)].float(), alpha=alpha
        )
        for name, tensor in adapter.items()
        if name.endswith(a)
    }


def _layers_named_as(
    module_names: Set[str], lora: Mapping[str, Tensor]
) -> tuple[dict[str, LoraLayer], bool]:
    """The layers under those of ``module_names``, and whether they had to be renamed."""
    layout, layers = parse_lora(lora)
    if module_names & layers.keys():
        return layers, False
    try:
        renamed = _RENAME[layout](layers)
    except ValueError:  # not FLUX.1, so the adapter's names are not those of its other layout
        return layers, False
    return (renamed, True) if module_names & renamed.keys() else (layers, False)


def _check_rank(layers: Mapping[str, LoraLayer], rank: int, is_renamed: bool) -> None:
    needed = max(layer.rank for layer in layers.values())
    if needed > rank:
        fused = ", with the ranks of the pieces of each fused layer added up" if is_renamed else ""
        raise ValueError(
            f"lora.rank is {rank}, and the LoRA to continue needs {needed}{fused}; set rank to "
            f"{needed} or more"
        )


def _header_alphas(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> dict[str, Tensor]:
    """Alpha tensors for a file whose scale is in diffusers' header."""
    prefix, end = "transformer.", ".lora_A.weight"
    config = {
        name.removeprefix(prefix): value
        for name, value in header.items()
        if name.startswith(prefix)
    }
    patterns = config.get("alpha_pattern") or config.get("rank_pattern")
    if patterns or not {"r", "lora_alpha"} <= config.keys():
        raise ValueError(
            f"the header of this LoRA ({_PEFT_CONFIG}) does not give one scale for all layers; "
            "load it with diffusers and save it without this entry"
        )
    rank, alpha = float(config["r"]), float(config["lora_alpha"])
    file_alpha = torch.tensor(alpha * math.sqrt(rank) if config.get("use_rslora") else alpha)
    modules = (name.removesuffix(end) for name in tensors if name.endswith(end))
    return {f"{module}.alpha": file_alpha for module in modules}
