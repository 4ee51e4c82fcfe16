"""What studies on the tiny FLUX share: the model with its policy, and signs of damage in a picture.

Legend: B pictures, H = W = 64.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.models.flux.policy import FluxPolicy
from chunk_grpo_core.models.tiny.model import ASSET, LATENT_SHAPE, TinyFlux, load_tiny_flux

__all__ = ["checkerboard", "flux_and_policy", "patch_grid", "saturation"]

PATCH = 8
"""Pixels of a token of the tiny FLUX: 2 latent pixels of 4 x 4 pixels."""


def flux_and_policy(lora: LoraConfig, seed: int, path: Path = ASSET) -> tuple[TinyFlux, FluxPolicy]:
    """The tiny FLUX, and the policy that trains it; pictures of the first show what was learnt."""
    flux = load_tiny_flux(path)
    policy = FluxPolicy(
        name="tiny-flux",
        transformer=flux.transformer,
        encode=lambda caption: flux.text.encode([caption]),
        decode=flux.codec.decode,
        encode_pictures=flux.codec.encode,
        latent_shape=LATENT_SHAPE,
        lora=lora,
        seed=seed,
    )
    return flux, policy


def checkerboard(images: Tensor) -> Tensor:
    """Mean absolute response of pictures (B, H, W, 3) to a checkerboard filter, (B,)."""
    grey = images.mean(-1)
    cell = grey[:, 1:, 1:] - grey[:, :-1, 1:] - grey[:, 1:, :-1] + grey[:, :-1, :-1]
    return (cell / 4).abs().flatten(1).mean(1)


def saturation(images: Tensor) -> Tensor:
    """Mean HSV saturation of pictures (B, H, W, 3), (B,)."""
    top, bottom = images.amax(-1), images.amin(-1)
    return ((top - bottom) / top.clamp(min=1e-3)).flatten(1).mean(1)


def patch_grid(images: Tensor) -> Tensor:
    """How much more neighbouring pixels differ where tokens meet than elsewhere, (B,).

    In 1/255; about 0 for a picture without blocks of 8 x 8 pixels.
    """
    excess = []
    for axis in (1, 2):
        steps = images.diff(dim=axis).abs().mean(-1).mean(3 - axis)  # (B, H - 1)
        is_border = torch.arange(1, steps.shape[1] + 1) % PATCH == 0
        excess.append(steps[:, is_border].mean(1) - steps[:, ~is_border].mean(1))
    return 255 * (excess[0] + excess[1]) / 2
