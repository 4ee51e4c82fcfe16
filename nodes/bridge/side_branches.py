"""Any LoRA that ComfyUI's loaders know, as one low-rank branch for each layer of a MODEL.

ComfyUI's own tables find the layers, so the native layout, diffusers', kohya's and the others are
read alike. Files that split a fused layer (to_q, to_k, to_v of qkv) become one branch: the factors
A are stacked, and each B stands in the rows that it changes.

Legend: r rank, summed over the parts of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.lora_convert
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from .adapter import is_linear

__all__ = ["side_branches"]

_ROOT, _WEIGHT = "diffusion_model.", ".weight"


def side_branches(
    model: ModelPatcher, lora: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Find the layers of ``model`` that ``lora`` changes.

    Args:
        model: Any native MODEL.
        lora: A LORA_MODEL, or the content of a LoRA file. Keys of other parts (a text encoder)
            are left out; ComfyUI logs them.

    Returns:
        Name of a linear layer inside the diffusion model -> A, shape (r, in), and B, shape
        (out, r), with the scale alpha / rank folded into B. CPU float32, free for autograd.

    Raises:
        ValueError: No layer of the MODEL is named; or something in it is not a low-rank branch of
            a linear layer, or has another size than the layer.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(lora)), names)
    if not patches:
        some = ", ".join(list(lora)[:3]) or "none"
        raise ValueError(
            f"the LoRA names no layer of this MODEL ({type(model.model).__name__}); it belongs to "
            f"another architecture. Its first keys: {some}"
        )
    branches: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with torch.inference_mode(False):  # else nothing could be trained on top
        for target, patch in patches.items():
            key, rows = _place(target)
            name = key.removeprefix(_ROOT).removesuffix(_WEIGHT)
            branches.setdefault(name, []).append(_branch(model.model, key, rows, patch))
        return {
            name: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1))
            for name, pairs in branches.items()
        }


def _place(target: str | tuple[Any, ...]) -> tuple[str, tuple[int, int] | None]:
    """Weight that a patch changes, and first and number of its rows, None for all."""
    if isinstance(target, str):
        return target, None
    key, offset = target[:2]
    if len(target) > 2 or (offset and offset[0] != 0):
        raise _unsupported(key, "values in another order")
    return key, offset and (offset[1], offset[2])


def _branch(
    base_model: torch.nn.Module, key: str, rows: tuple[int, int] | None, patch: Any
) -> tuple[Tensor, Tensor]:
    """A and B of one patch, B with as many rows as the layer has outputs."""
    if not isinstance(patch, LoRAAdapter):
        raise _unsupported(key, getattr(patch, "name", None) or patch[0])
    up, down, alpha, middle, dora_scale, reshape = patch.weights
    for what, extra in (("lora_mid", middle), ("DoRA", dora_scale), ("reshape", reshape)):
        if extra is not None:
            raise _unsupported(key, what)
    layer: Any = base_model.get_submodule(key.removesuffix(_WEIGHT))
    if not (key.startswith(_ROOT) and key.endswith(_WEIGHT) and is_linear(layer)):
        raise _unsupported(key, f"a branch of a {type(layer).__name__}")
    a, b = (factor.detach().to("cpu", torch.float32, copy=True) for factor in (down, up))
    a, b = a.flatten(1), b.flatten(1)
    first, count = rows or (0, layer.out_features)
    if a.shape[1] != layer.in_features or b.shape != (count, a.shape[0]):
        raise ValueError(
            f"the LoRA has factors {tuple(down.shape)} and {tuple(up.shape)} for {key}, a layer "
            f"of {layer.in_features} inputs and {count} outputs; it was trained on another model"
        )
    if alpha is not None:
        b *= float(alpha) / a.shape[0]
    whole = torch.zeros(layer.out_features, a.shape[0])
    whole[first : first + count] = b
    return a, whole


def _unsupported(key: str, what: object) -> ValueError:
    return ValueError(
        f"the LoRA holds {what} for {key}; only low-rank branches of linear layers can be applied "
        "without merging. Use ComfyUI's Load LoRA for this one"
    )
