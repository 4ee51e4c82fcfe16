"""A FLUX.1 transformer from Black Forest Labs' names to diffusers' names, whatever its size.

diffusers has a converter too, but with FLUX.1's width written into it; this one takes every width,
so that small models can test it, and it carries the scales of fp8 files along.

Legend: h hidden size, C channels of a latent; a token holds 4 C numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...lora.name_tables import FLUX1
from ..weight_file import SCALE

__all__ = ["diffusers_state", "flux_config"]

_NORMS = {
    "double_blocks": (
        "transformer_blocks",
        {
            "img_attn.norm.query_norm": "attn.norm_q",
            "img_attn.norm.key_norm": "attn.norm_k",
            "txt_attn.norm.query_norm": "attn.norm_added_q",
            "txt_attn.norm.key_norm": "attn.norm_added_k",
        },
    ),
    "single_blocks": (
        "single_transformer_blocks",
        {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"},
    ),
}
_ROPE_AXES = (16, 56, 56)


def flux_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read the size of a model off its tensors.

    Args:
        shapes: Native names and shapes.

    Returns:
        Arguments of diffusers' FluxTransformer2DModel.

    Raises:
        ValueError: A tensor that tells a size is missing, heads are not those of FLUX.1, or the
            model takes more than noisy latents (Fill, Depth, Canny).
    """
    hidden, inputs = _shape(shapes, "img_in.weight")
    outputs = _shape(shapes, "final_layer.linear.weight")[0]
    if inputs != outputs:
        raise ValueError(
            f"this FLUX.1 takes {inputs} numbers for each image token and gives {outputs}: it "
            "needs a picture beside the noise (Fill, Depth, Canny), which is not supported"
        )
    head = _shape(shapes, "double_blocks.0.img_attn.norm.query_norm.scale")[0]
    if head != sum(_ROPE_AXES) or hidden % head:
        raise ValueError(
            f"heads of {head} numbers in a width of {hidden} are not FLUX.1's, which have "
            f"{sum(_ROPE_AXES)}"
        )
    return {
        "patch_size": 1,
        "in_channels": inputs,
        "num_layers": _blocks(shapes, "double_blocks"),
        "num_single_layers": _blocks(shapes, "single_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": _shape(shapes, "txt_in.weight")[1],
        "pooled_projection_dim": _shape(shapes, "vector_in.in_layer.weight")[1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": _ROPE_AXES,
    }


def diffusers_state(native: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a FLUX.1 transformer; fused layers are cut into views, nothing copied.

    Args:
        native: Native names without a prefix; of fp8 files with their scales, of GGUF files the
            quantised rows.

    Returns:
        diffusers' names. A scale stands under its layer's name with the ending :data:`SCALE`.

    Raises:
        ValueError: A name is none of FLUX.1's.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in native.items():
        module, _, ending = name.rpartition(".")
        if name.endswith(SCALE):
            state |= {piece + SCALE: tensor for piece in _names(module)}
        elif ending == "scale":
            state[f"{_norm_name(module)}.weight"] = tensor
        else:
            state |= {f"{piece}.{ending}": rows for piece, rows in _rows(module, tensor)}
    return state


def _rows(module: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The diffusers layers of a native layer, each with its rows of a weight or a bias."""
    if module in FLUX1.turned:
        shift, scale = tensor.chunk(2)
        return [(FLUX1.turned[module], torch.cat([scale, shift]))]
    pieces = FLUX1.pieces(module)
    if len(pieces) < 2:
        return [(name, tensor) for name in _names(module)]
    unit = len(tensor) // sum(count for _, _, count in pieces)
    return [(name, tensor[a * unit : (a + count) * unit]) for name, a, count in pieces]


def _names(module: str) -> Iterable[str]:
    if name := FLUX1.turned.get(module) or FLUX1.outside.get(module):
        return [name]
    if pieces := FLUX1.pieces(module):
        return [name for name, _, _ in pieces]
    raise ValueError(f"{module} is no layer of a FLUX.1 transformer")


def _norm_name(module: str) -> str:
    kind, index, leaf = (*module.split(".", 2), "", "")[:3]
    blocks, leaves = _NORMS.get(kind, ("", {}))
    if leaf not in leaves:
        raise ValueError(f"{module} is no layer of a FLUX.1 transformer")
    return f"{blocks}.{index}.{leaves[leaf]}"


def _blocks(shapes: Mapping[str, tuple[int, ...]], kind: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith(f"{kind}."))


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"{name} is missing")
    return shapes[name]
