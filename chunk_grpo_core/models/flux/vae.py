"""The VAE of FLUX.1, from a folder or from ae.safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...optional import require
from ..kept_weights import to_type
from ..weight_file import read_header, read_tensors
from .files import find_part
from .transformer import check_same_names

__all__ = [
    "diffusers_vae_state",
    "load_vae",
    "pixels_per_latent",
    "vae_config",
]

#: FLUX.1's own numbers: latents are (z - shift) * scaling.
_SCALING, _SHIFT = 0.3611, 0.1159

_RENAME = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
        (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
        (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
        (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
        (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
        (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
        (r"\.norm_out\.", ".conv_norm_out."),
    )
]
_UP = re.compile(r"^decoder\.up_blocks\.(\d+)")


def load_vae(source: Path, dtype: torch.dtype, device: torch.device, *, tiling: bool) -> nn.Module:
    """Load the VAE, frozen.

    Args:
        source: A folder of diffusers, or a .safetensors file with native or diffusers' names.
        dtype: Type of weights and computation.
        device: Where it goes.
        tiling: Decode in tiles, which saves memory and leaves seams that training can learn.

    Returns:
        An AutoencoderKL.

    Raises:
        FileNotFoundError: The source is missing.
        ValueError: It is not a VAE.
    """
    kind = require("diffusers", "To load a VAE").AutoencoderKL
    if source.is_dir():
        vae = kind.from_pretrained(source, torch_dtype=dtype, local_files_only=True)
    else:
        part = find_part(read_header(source), "vae")
        state = to_type(read_tensors(part.file, part.prefix), dtype)
        if part.layout == "native":
            state = diffusers_vae_state(state)
        with torch.device("meta"):
            vae = kind(**vae_config({name: tuple(t.shape) for name, t in state.items()}))
        check_same_names(state, vae, source)
        vae.load_state_dict(state, assign=True)
    vae.requires_grad_(False).train(False).to(device)
    if tiling:
        vae.enable_tiling()
    return vae


def pixels_per_latent(vae: Any) -> int:
    """Pixels along one side of a latent pixel: 8 in FLUX.1."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def diffusers_vae_state(native: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a VAE; attention, 1 x 1 convolutions there, becomes linear layers."""
    levels = 1 + max(int(n.split(".")[2]) for n in native if n.startswith("decoder.up."))
    state = {}
    for name, tensor in native.items():
        for pattern, text in _RENAME:
            name = pattern.sub(text, name)
        name = _UP.sub(lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}", name)
        if ".attentions.0.to_" in name and name.endswith(".weight"):
            tensor = tensor.reshape(tensor.shape[:2])
        state[name] = tensor
    return state


def vae_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKL, read off diffusers' names and shapes.

    Raises:
        ValueError: It is not built like FLUX.1's: the scale of its latents is not known.
    """
    if "post_quant_conv.weight" in shapes:
        channels = shapes["decoder.conv_in.weight"][1]
        raise ValueError(
            f"this VAE has {channels} latent channels and a post_quant_conv; it is Stable "
            "Diffusion's, not FLUX.1's (ae.safetensors)"
        )
    levels = 1 + max(int(n.split(".")[2]) for n in shapes if n.startswith("encoder.down_blocks."))
    blocks = {n.split(".")[4] for n in shapes if n.startswith("encoder.down_blocks.0.resnets.")}
    widths = [
        shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
    ]
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": len(blocks),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": 32,
        "scaling_factor": _SCALING,
        "shift_factor": _SHIFT,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
