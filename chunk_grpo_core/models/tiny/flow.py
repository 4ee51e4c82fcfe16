"""The ODE sampler of the tiny world, for pictures of many captions at once.

Legend: B pictures, C latent channels, h w latent size (even), L text tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...method.schedule import shifted_grid
from ..flux.policy import predict_velocity

__all__ = ["SHIFT", "euler"]

#: Static time shift of training and sampling.
SHIFT = 3.0


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
    x = noise
    for now, then in shifted_grid(steps, SHIFT).pairs():
        t = torch.full((len(x),), now, device=x.device)
        x = x + (then - now) * predict_velocity(transformer, x, t, features, pooled)
    return x
