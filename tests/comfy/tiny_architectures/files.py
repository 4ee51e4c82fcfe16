"""A tiny SD3 as a file that ComfyUI's own loader node takes; written without ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .models import ARCHITECTURES

FORMATS = ("float32", "scaled fp8", "mixed precision")
"""Of the weights. The other two hold the same numbers: fp8 with one scale for each matrix, marked
by ``scale_weight`` (older files) or named in the header with ``weight_scale`` (newer files)."""

WIDTH = 64
"""ComfyUI takes the width of an SD3 to be 64 times its depth, here 1."""

_FP8 = torch.float8_e4m3fn


def write_sd3(path: Path, weights: str = "float32", seed: int = 0) -> None:
    """Write a random SD3 of depth 1 that goes with the CLIP of the architecture ``sd3``.

    Args:
        path: Where to.
        weights: One of :data:`FORMATS`.
        seed: Seed of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    header: dict[str, str] = {}
    state: dict[str, Tensor] = {}
    quantised = []
    for name, shape in _layers().items():
        weight, bias = (0.1 * torch.randn(s, generator=generator) for s in (shape, shape[:1]))
        state[f"{name}.bias"] = bias.to(_FP8).float()  # the older format rounds biases too
        state[f"{name}.weight"] = weight
        if weight.ndim > 2:  # a convolution
            continue
        scale = weight.abs().max() / torch.finfo(_FP8).max
        rounded = (weight / scale).to(_FP8)
        state[f"{name}.weight"] = rounded
        if weights == "float32":
            state[f"{name}.weight"] = rounded.float() * scale
        elif weights == "scaled fp8":
            state[f"{name}.scale_weight"] = scale
        else:
            state[f"{name}.weight_scale"] = scale
            quantised.append(name)
    if weights == "scaled fp8":
        state["scaled_fp8"] = torch.empty(0, dtype=_FP8)
    if quantised:
        layers = {name: {"format": "float8_e4m3fn", "params": {}} for name in quantised}
        header["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    patches = ARCHITECTURES["sd3"].unet_config["num_patches"]
    state["pos_embed"] = 0.1 * torch.randn(1, patches, WIDTH, generator=generator)
    save_file(state, path, header)


def _layers() -> dict[str, tuple[int, ...]]:
    """Name of every layer -> shape of its weight."""
    context = ARCHITECTURES["sd3"].context
    pooled = ARCHITECTURES["sd3"].unet_config["adm_in_channels"]
    return {
        "t_embedder.mlp.0": (WIDTH, 256),
        "t_embedder.mlp.2": (WIDTH, WIDTH),
        "y_embedder.mlp.0": (WIDTH, pooled),
        "y_embedder.mlp.2": (WIDTH, WIDTH),
        "x_embedder.proj": (WIDTH, 16, 2, 2),
        "context_embedder": (WIDTH, context),
        "joint_blocks.0.x_block.attn.qkv": (3 * WIDTH, WIDTH),
        "joint_blocks.0.x_block.attn.proj": (WIDTH, WIDTH),
        "joint_blocks.0.x_block.mlp.fc1": (4 * WIDTH, WIDTH),
        "joint_blocks.0.x_block.mlp.fc2": (WIDTH, 4 * WIDTH),
        "joint_blocks.0.x_block.adaLN_modulation.1": (6 * WIDTH, WIDTH),
        "joint_blocks.0.context_block.attn.qkv": (3 * WIDTH, WIDTH),
        "joint_blocks.0.context_block.adaLN_modulation.1": (2 * WIDTH, WIDTH),
        "final_layer.linear": (4 * 16, WIDTH),
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }
