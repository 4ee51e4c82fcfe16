"""FLUX.1 on diffusers as a :class:`~chunk_grpo_core.method.policy.Policy`.

The transformer works on tokens: 2 x 2 latent pixels are one token, packed channel first;
``img_ids`` hold (0, row, column), ``txt_ids`` are zero, time is in 0..1.

Legend: B samples, C latent channels, h w latent size (even), n = h w / 4 tokens, L text tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..diffusers_policy import DiffusersPolicy
from ..pipelines.form import packed, unpacked

__all__ = ["FluxPolicy", "pack_latents", "predict_velocity", "unpack_latents"]

_IN_BLOCK = r"(single_)?transformer_blocks\.\d+\."
_ATTENTION = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_MLP = r"ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out"


def pack_latents(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> tokens (B, n, 4 C), in the order of diffusers' FluxPipeline.

    Raises:
        ValueError: The shape is not (B, C, h, w) with h and w even.
    """
    if latents.ndim != 4 or latents.shape[2] % 2 or latents.shape[3] % 2:
        raise ValueError(f"latents must be (B, C, even, even), got {tuple(latents.shape)}")
    return packed(latents)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, n, 4 C) -> latents (B, C, height, width). Inverse of :func:`pack_latents`."""
    count = tokens.shape[1]
    if height % 2 or width % 2 or count != height * width // 4:
        raise ValueError(f"{count} tokens do not fill latents of {height} x {width}")
    return unpacked(tokens, height // 2)


def image_ids(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions (0, row, column) of the tokens of latents of this size, float32, (n, 3)."""
    ids = torch.zeros(height // 2, width // 2, 3, device=device)
    ids[..., 1] = torch.arange(height // 2, device=device)[:, None]
    ids[..., 2] = torch.arange(width // 2, device=device)[None, :]
    return ids.reshape(-1, 3)


def predict_velocity(
    transformer: Any,
    x_t: Tensor,
    t: Tensor,
    features: Tensor,
    pooled: Tensor,
    guidance: float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Velocity of noisy latents.

    Args:
        transformer: A FluxTransformer2DModel.
        x_t: Noisy latents (B, C, h, w).
        t: Times in 0..1, shape (B,).
        features: Text features (B, L, D).
        pooled: Pooled text features (B, P).
        guidance: Distilled guidance scale; None for models without guidance embedding.
        dtype: What the transformer computes in; it is asked if None, which takes time.

    Returns:
        Velocity (B, C, h, w), float32; the transformer computes in its own dtype.
    """
    height, width = x_t.shape[-2:]
    dtype = dtype or transformer.dtype
    scale = None if guidance is None else torch.full((len(x_t),), guidance, device=x_t.device)
    (out,) = transformer(
        hidden_states=pack_latents(x_t).to(dtype),
        encoder_hidden_states=features.to(dtype),
        pooled_projections=pooled.to(dtype),
        timestep=t,
        guidance=scale,
        img_ids=image_ids(height, width, x_t.device),
        txt_ids=torch.zeros(features.shape[1], 3, device=x_t.device),
        return_dict=False,
    )
    return unpack_latents(out.float(), height, width)


class FluxPolicy(DiffusersPolicy[tuple[Tensor, Tensor]]):
    """A FluxTransformer2DModel; of a caption it reads text features (1, L, D) and pooled features
    (1, P)."""

    blocks = ("transformer_blocks", "single_transformer_blocks")
    """See :class:`~..diffusers_policy.DiffusersPolicy`."""
    targets = {
        "attention": f"{_IN_BLOCK}({_ATTENTION})",
        "attention+mlp": f"{_IN_BLOCK}({_ATTENTION}|{_MLP})",
        "all-linear": f"{_IN_BLOCK}.+",
    }
    """See :class:`~..diffusers_policy.DiffusersPolicy`."""

    def __init__(self, *, guidance: float | None = None, **shared: Any) -> None:
        """Freeze the transformer and put a fresh LoRA on it.

        Args:
            guidance: See :func:`predict_velocity`.
            **shared: See :class:`~..diffusers_policy.DiffusersPolicy`.
        """
        super().__init__(**shared)
        self._guidance = guidance

    def predict(self, x_t: Tensor, t: Tensor, conditioning: tuple[Tensor, Tensor]) -> Tensor:
        """See :class:`~..diffusers_policy.DiffusersPolicy`."""
        features, pooled = (part.expand(len(x_t), *part.shape[1:]) for part in conditioning)
        transformer, dtype = self.transformer, self._dtype
        return predict_velocity(transformer, x_t, t, features, pooled, self._guidance, dtype)
