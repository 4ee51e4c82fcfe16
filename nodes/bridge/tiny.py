"""The embedded tiny FLUX as ComfyUI's own MODEL, CLIP and VAE.

FLUX files are recognised by sizes that ComfyUI hard-codes (24 heads, 56-wide axes), so a small one
cannot come from a loader node; the same classes are built here from Python. Standard nodes work on
all three: CLIPTextEncode, KSampler, VAEDecode, LoraLoaderModelOnly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import comfy.latent_formats
import comfy.model_detection
import comfy.model_management as memory
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.flux.model import FluxParams
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...chunk_grpo_core.models.tiny.codec import LATENT_CHANNELS
from ...chunk_grpo_core.models.tiny.model import ASSET, SHIFT, TRANSFORMER_CONFIG
from .tiny_codec import tiny_vae
from .tiny_text import tiny_clip

__all__ = ["empty_model", "load_tiny", "tiny_model"]


def load_tiny() -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Read the embedded file.

    Returns:
        MODEL, CLIP and VAE, float32.

    Raises:
        FileNotFoundError: The installation has no weights file.
    """
    if not ASSET.is_file():
        raise FileNotFoundError(f"the tiny FLUX is missing: {ASSET}. Install this pack again")
    weights: dict[str, dict[str, Tensor]] = {"transformer": {}, "text": {}, "codec": {}}
    for name, tensor in comfy.utils.load_torch_file(str(ASSET)).items():
        part, _, key = name.partition(".")
        weights[part][key] = tensor.float()
    return (
        tiny_model(weights["transformer"]),
        tiny_clip(weights["text"]),
        tiny_vae(weights["codec"]),
    )


class _Latent(comfy.latent_formats.LatentFormat):
    """The codec's latents are normalised already: process_in and process_out are the identity."""

    latent_channels = LATENT_CHANNELS
    # Least squares over 300 of its pictures, R^2 .99: what live previews show.
    latent_rgb_factors = (
        (-0.083, -0.071, 0.037), (0.015, 0.006, -0.015), (-0.035, -0.061, -0.088),
        (0.054, 0.162, -0.241), (0.0, 0.025, -0.022), (-0.157, 0.232, 0.204),
        (-0.182, -0.266, 0.078), (0.214, -0.089, -0.06), (-0.053, 0.012, -0.005),
        (-0.375, -0.057, -0.289), (-0.007, -0.008, 0.022), (0.01, -0.012, -0.055),
        (0.001, -0.003, 0.035), (-0.03, 0.089, 0.009), (0.004, -0.041, -0.001),
        (-0.01, -0.01, 0.011),
    )  # fmt: skip
    latent_rgb_factors_bias = (0.047, -0.024, -0.192)


class _Config(comfy.supported_models.Flux):
    latent_format = _Latent
    # ComfyUI's FLUX shift is an exponent; exp(log SHIFT) makes it the static shift of training.
    sampling_settings = {"shift": math.log(SHIFT)}
    picture_size = 64


def _unet_config() -> dict[str, Any]:
    """FluxParams for diffusers' TRANSFORMER_CONFIG."""
    source = TRANSFORMER_CONFIG
    heads, width = source["num_attention_heads"], source["attention_head_dim"]
    config: dict[str, Any] = {
        "image_model": "flux",
        "in_channels": LATENT_CHANNELS,  # native FLUX packs 2 x 2 patches itself
        "out_channels": LATENT_CHANNELS,
        "patch_size": 2,
        "vec_in_dim": source["pooled_projection_dim"],
        "context_in_dim": source["joint_attention_dim"],
        "hidden_size": heads * width,
        "mlp_ratio": 4.0,
        "num_heads": heads,
        "depth": source["num_layers"],
        "depth_single_blocks": source["num_single_layers"],
        "axes_dim": list(source["axes_dims_rope"]),
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": source["guidance_embeds"],
    }
    if "txt_ids_dims" in {field.name for field in dataclasses.fields(FluxParams)}:
        config["txt_ids_dims"] = []  # newer ComfyUI asks for it; FLUX.1 has none
    return config


def empty_model(
    dtype: torch.dtype = torch.float32, cast: torch.dtype | None = None
) -> ModelPatcher:
    """Build the MODEL with uninitialised weights.

    Args:
        dtype: Type the weights are stored in.
        cast: Type to compute in, if another one.
    """
    config = _Config(_unet_config())
    config.set_inference_dtype(dtype, cast)
    model = config.get_model({}, "", device=memory.unet_offload_device())
    model.diffusion_model.requires_grad_(False)
    # Never the dynamic patcher: this model has no file that it could be streamed from.
    return ModelPatcher(
        model,
        load_device=memory.get_torch_device(),
        offload_device=memory.unet_offload_device(),
    )


def tiny_model(weights: Mapping[str, Tensor]) -> ModelPatcher:
    """Build the MODEL.

    Args:
        weights: State dict of diffusers' FluxTransformer2DModel with TRANSFORMER_CONFIG.
    """
    patcher = empty_model()
    # The conversion writes into what it is given.
    copies = {name: tensor.float().clone() for name, tensor in weights.items()}
    native = comfy.model_detection.convert_diffusers_mmdit(copies, "")
    native = patcher.model.model_config.process_unet_state_dict(native)
    patcher.model.diffusion_model.load_state_dict(native)
    return patcher
