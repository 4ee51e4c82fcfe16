"""Tiny random models of the architectures people train, through ComfyUI's own classes.

Also imported where there is no ComfyUI: it is imported inside the functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from .architecture import FLUX, TOKENS, Architecture, no_pooled, pooled
from .others import OTHERS

ARCHITECTURES = {
    "flux": Architecture(
        kind="Flux", unet_config={"image_model": "flux", **FLUX}, extras=pooled(16)
    ),
    "flux2": Architecture(
        kind="Flux2",
        unet_config={
            # Shallow, because ComfyUI fills its texts up to 512 tokens.
            **FLUX, "image_model": "flux2", "patch_size": 1, "in_channels": 128,
            "out_channels": 128, "depth": 1, "depth_single_blocks": 1, "vec_in_dim": None,
            "mlp_ratio": 3.0, "axes_dim": [8, 8, 8, 8],
            "theta": 2000, "qkv_bias": False, "global_modulation": True, "mlp_silu_act": True,
            "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0,
            "txt_ids_dims": [3],
        },
        latent=(128, 4, 4),
        extras=no_pooled,
    ),
    "chroma": Architecture(
        kind="Chroma",
        unet_config={
            **{key: value for key, value in FLUX.items() if key != "guidance_embed"},
            "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64,
            "out_dim": 64, "hidden_dim": 64, "n_layers": 1,
        },
        extras=no_pooled,
    ),
    "sd3": Architecture(
        kind="SD3",
        unet_config={
            "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2, "input_size": None,
            "adm_in_channels": 16, "num_patches": 64, "pos_embed_max_size": 8, "qk_norm": "rms",
            "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [0],
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128},
            },
        },
        extras=pooled(16),
    ),
    "qwen_image": Architecture(
        kind="QwenImage",
        unet_config={
            "image_model": "qwen_image", "in_channels": 64, "num_layers": 2,
            "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 32,
            "axes_dims_rope": (8, 12, 12),
        },
        latent=(16, 1, 8, 8),
    ),
    "z_image": Architecture(
        kind="ZImage",
        unet_config={
            "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": 32,
            "n_layers": 2, "n_refiner_layers": 1, "qk_norm": True, "dim": 256, "n_heads": 8,
            "n_kv_heads": 8, "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64],
            "rope_theta": 256.0, "ffn_dim_multiplier": 0.25, "z_image_modulation": True,
            "time_scale": 1000.0, "pad_tokens_multiple": 8,
        },
    ),
}  # fmt: skip


ALL = ARCHITECTURES | OTHERS
"""All flow models of pictures that some ComfyUI has."""


def is_there(name: str | Architecture) -> bool:
    """Whether this ComfyUI has the architecture."""
    import comfy.supported_models

    entry = ALL[name] if isinstance(name, str) else name
    return hasattr(comfy.supported_models, entry.kind)


def fill(module: torch.nn.Module, std: float = 0.1, seed: int = 0) -> None:
    """Draw every weight and buffer of a module from N(0, std), scales of norms from N(1, std)."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        values = std * torch.randn(tensor.shape, generator=generator)
        is_scale = tensor.ndim == 1 and name.endswith(("scale", "weight"))
        state[name] = (values + is_scale).to(tensor.dtype)
    module.load_state_dict(state)


def build(
    name: str | Architecture,
    dtype: torch.dtype = torch.float32,
    cast: torch.dtype | None = None,
    seed: int = 0,
):
    """A MODEL with random weights.

    Args:
        name: One of :data:`ALL`, or one of its own.
        dtype: Type the weights are stored in.
        cast: Type to compute in, if another one.
        seed: Seed of the weights.
    """
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.supported_models

    entry = ALL[name] if isinstance(name, str) else name
    config = _known(entry.unet_config)
    settings = getattr(comfy.supported_models, entry.kind)(config)
    settings.unet_config |= config  # some classes insist on the sizes of the real model
    settings.set_inference_dtype(dtype, cast)
    model = settings.get_model({}, "", device=torch.device("cpu"))
    fill(model.diffusion_model, seed=seed)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=memory.get_torch_device(), offload_device=memory.unet_offload_device()
    )


def _known(unet_config: Mapping[str, Any]) -> dict[str, Any]:
    """What of such a configuration this ComfyUI knows; newer ones insist on more."""
    import comfy.ldm.chroma.model
    import comfy.ldm.chroma_radiance.model
    import comfy.ldm.flux.model
    import comfy.ldm.hunyuan_video.model

    params = {
        "flux": comfy.ldm.flux.model.FluxParams,
        "flux2": comfy.ldm.flux.model.FluxParams,
        "chroma": comfy.ldm.chroma.model.ChromaParams,
        "chroma_radiance": comfy.ldm.chroma_radiance.model.ChromaRadianceParams,
        "hunyuan_video": comfy.ldm.hunyuan_video.model.HunyuanVideoParams,
    }.get(unet_config.get("image_model", ""))
    if params is None:
        return dict(unet_config)
    known = {"image_model", *(field.name for field in dataclasses.fields(params))}
    return {key: value for key, value in unet_config.items() if key in known}


def conditioning(name: str | Architecture, seed: int, tokens: int = TOKENS) -> list[list[Any]]:
    """A random CONDITIONING of the right shape."""
    entry = ALL[name] if isinstance(name, str) else name
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, tokens, entry.context, generator=generator)
    extras = entry.extras(generator)
    if "attention_mask" in extras:
        extras["attention_mask"] = extras["attention_mask"][:, -tokens:]
    return [[features, extras]]
