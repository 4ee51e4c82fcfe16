"""Plumbing between latents and the FLUX transformer, and the ODE sampler.

The conventions are those of FLUX.1: 2 x 2 latent pixels are one token, packed channel first,
``img_ids`` hold (0, row, column), ``txt_ids`` are zero, time is in 0..1.

Legend: B pictures, C latent channels, h w latent size (even), N = h w / 4 tokens, L text tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "SHIFT",
    "euler",
    "image_ids",
    "pack_latents",
    "predict_velocity",
    "shifted_sigmas",
    "text_ids",
    "unpack_latents",
]

#: Static time shift of training and sampling.
SHIFT = 3.0


def pack_latents(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> tokens (B, N, 4 C), exactly as diffusers' FluxPipeline.

    Raises:
        ValueError: The shape is not (B, C, h, w) with h and w even.
    """
    if latents.ndim != 4 or latents.shape[2] % 2 or latents.shape[3] % 2:
        raise ValueError(f"latents must be (B, C, even, even), got {tuple(latents.shape)}")
    b, c, h, w = latents.shape
    blocks = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, N, 4 C) -> latents (B, C, height, width). Inverse of :func:`pack_latents`.

    Raises:
        ValueError: The number of tokens does not belong to this size.
    """
    b, n, d = tokens.shape
    if height % 2 or width % 2 or n != height * width // 4:
        raise ValueError(f"{n} tokens do not fill latents of {height} x {width}")
    blocks = tokens.view(b, height // 2, width // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(b, d // 4, height, width)


def image_ids(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions (0, row, column) of the tokens of latents of this size, float32, (N, 3)."""
    ids = torch.zeros(height // 2, width // 2, 3, device=device)
    ids[..., 1] = torch.arange(height // 2, device=device)[:, None]
    ids[..., 2] = torch.arange(width // 2, device=device)[None, :]
    return ids.reshape(-1, 3)


def text_ids(length: int, device: torch.device | None = None) -> Tensor:
    """Positions of text tokens: zeros, float32, (L, 3)."""
    return torch.zeros(length, 3, device=device)


def predict_velocity(
    transformer: nn.Module, x_t: Tensor, t: Tensor, features: Tensor, pooled: Tensor
) -> Tensor:
    """Velocity of noisy latents.

    Args:
        transformer: A FluxTransformer2DModel.
        x_t: Noisy latents (B, C, h, w).
        t: Times in 0..1, shape (B,).
        features: Text features (B, L, D).
        pooled: Pooled text features (B, P).

    Returns:
        Velocity (B, C, h, w).
    """
    height, width = x_t.shape[-2:]
    (out,) = transformer(
        hidden_states=pack_latents(x_t),
        encoder_hidden_states=features,
        pooled_projections=pooled,
        timestep=t,
        img_ids=image_ids(height, width, x_t.device),
        txt_ids=text_ids(features.shape[1], x_t.device),
        return_dict=False,
    )
    return unpack_latents(out, height, width)


def shifted_sigmas(steps: int, shift: float = SHIFT) -> Tensor:
    """Times of a sampler with ``steps`` steps: float32, shape (steps + 1,), from 1 down to 0."""
    t = torch.linspace(1, 0, steps + 1)
    return shift * t / (1 + (shift - 1) * t)


@torch.no_grad()
def euler(
    transformer: nn.Module, noise: Tensor, features: Tensor, pooled: Tensor, steps: int = 9
) -> Tensor:
    """Follow the ODE from noise to data with Euler steps.

    Args:
        transformer: A FluxTransformer2DModel.
        noise: Standard normal, (B, C, h, w).
        features: Text features (B, L, D).
        pooled: Pooled text features (B, P).
        steps: Number of steps, > 0.

    Returns:
        Latents (B, C, h, w).
    """
    x, times = noise, shifted_sigmas(steps).tolist()
    for now, then in zip(times[:-1], times[1:], strict=True):
        t = torch.full((len(x),), now, device=x.device)
        x = x + (then - now) * predict_velocity(transformer, x, t, features, pooled)
    return x
