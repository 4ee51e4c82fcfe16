"""MODELs of ComfyUI with random weights, at the size of published ones or very small.

Speed and memory do not depend on the values of weights, so nothing is read. ComfyUI is imported
inside the functions: see ``tools/comfyui/inside.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["MODELS", "PRECISIONS", "TINY_MODELS", "NativeModel", "build", "conditioning"]

PRECISIONS = {
    "fp8": (torch.float8_e4m3fn, torch.bfloat16),
    "bf16": (torch.bfloat16, None),
    "float32": (torch.float32, None),
}
"""Name -> type of the weights, and type of the products if another one."""


@dataclass(frozen=True, kw_only=True)
class NativeModel:
    """Sizes of a model."""

    kind: str
    """Class in comfy.supported_models."""
    config: Mapping[str, Any]
    """Of its network."""
    context: tuple[int, int]
    """Tokens and width of the text features."""
    pooled: int | None = None
    """Width of the pooled features."""
    channels: int = 16
    """Of the latents."""
    scale: int = 8
    """Pixels of a latent's side."""
    shift: float = 3.0
    """Of the noise levels in use."""


_FLUX = {
    "image_model": "flux", "patch_size": 2, "in_channels": 16, "out_channels": 16,
    "vec_in_dim": 768, "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0,
    "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56],
    "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
_KLEIN = {
    "image_model": "flux2", "patch_size": 1, "in_channels": 128, "out_channels": 128,
    "vec_in_dim": None, "context_in_dim": 7680, "hidden_size": 3072, "mlp_ratio": 3.0,
    "num_heads": 24, "depth": 5, "depth_single_blocks": 20, "axes_dim": [32, 32, 32, 32],
    "theta": 2000, "qkv_bias": False, "guidance_embed": False, "global_modulation": True,
    "mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index",
    "ref_index_scale": 10.0, "txt_ids_dims": [3],
}  # fmt: skip
_Z_IMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": 2560,
    "n_layers": 30, "n_refiner_layers": 2, "qk_norm": True, "dim": 3840, "n_heads": 30,
    "n_kv_heads": 30, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
MODELS = {
    "flux1-dev": NativeModel(kind="Flux", config=_FLUX, context=(512, 4096), pooled=768),
    "flux2-klein-4b": NativeModel(
        kind="Flux2", config=_KLEIN, context=(512, 7680), channels=128, scale=16
    ),
    "z-image": NativeModel(kind="ZImage", config=_Z_IMAGE, context=(256, 2560)),
}
"""Published ones: 12, 4 and 6 billion parameters."""
_SMALL = {
    "hidden_size": 64, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "vec_in_dim": 16,
    "context_in_dim": 32, "axes_dim": [8, 12, 12],
}  # fmt: skip
TINY_MODELS = {
    "flux1-dev": NativeModel(kind="Flux", config=_FLUX | _SMALL, context=(8, 32), pooled=16),
    "flux2-klein-4b": NativeModel(
        kind="Flux2",
        config=_KLEIN | _SMALL | {"vec_in_dim": None, "axes_dim": [8, 8, 8, 8]},
        context=(8, 32),
        channels=128,
        scale=16,
    ),
    "z-image": NativeModel(
        kind="ZImage",
        config=_Z_IMAGE
        | {
            "cap_feat_dim": 32, "n_layers": 2, "n_refiner_layers": 1, "dim": 256, "n_heads": 8,
            "n_kv_heads": 8, "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64],
            "ffn_dim_multiplier": 0.25, "pad_tokens_multiple": 8,
        },
        context=(8, 32),
    ),
}  # fmt: skip
"""The same classes, to try a script out."""


def build(model: NativeModel, precision: str) -> Any:
    """A MODEL whose weights wait in system memory, as ComfyUI's loaders leave them."""
    import comfy.ldm.flux.model
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.supported_models

    known = comfy.ldm.flux.model.FluxParams.__dataclass_fields__
    is_flux = str(model.config["image_model"]).startswith("flux")
    config = {
        key: value
        for key, value in model.config.items()
        if not is_flux or key == "image_model" or key in known
    }
    settings = getattr(comfy.supported_models, model.kind)(dict(config))
    settings.unet_config |= config
    settings.set_inference_dtype(*PRECISIONS[precision])
    built = settings.get_model({}, "", device=torch.device("cpu"))
    _fill(built.diffusion_model)
    return comfy.model_patcher.ModelPatcher(
        built, load_device=memory.get_torch_device(), offload_device=memory.unet_offload_device()
    )


def _fill(network: torch.nn.Module) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, device=device)
            is_scale = parameter.ndim == 1 and name.endswith(("scale", "weight"))
            std = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.02
            parameter.copy_((std * values + is_scale).to(parameter.dtype))


def conditioning(model: NativeModel, seed: int) -> list[list[Any]]:
    """A CONDITIONING of random text features."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, *model.context, generator=generator)
    pooled = torch.randn(1, model.pooled, generator=generator) if model.pooled else None
    return [[features, {"pooled_output": pooled, "guidance": 3.5}]]
