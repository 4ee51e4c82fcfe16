"""What a MODEL and its VAE say by themselves: noise levels and a picture size, where no socket says
anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE

from ...chunk_grpo_core.method.schedule import TimeGrid
from .session import check_flow_model

__all__ = ["PICTURE_SIZE", "empty_latent", "own_grid"]

PICTURE_SIZE = 512
"""Pixels a side of a first training. A model that draws others says so in ``picture_size`` of its
configuration, as the tiny FLUX does."""
_SCHEDULER = "simple"


def own_grid(model: ModelPatcher, steps: int) -> TimeGrid:
    """The noise levels of BasicScheduler, which have the shift that is set on the MODEL.

    Args:
        model: A flow-matching MODEL.
        steps: How many steps, 2 or more.

    Raises:
        ValueError: The MODEL is of another kind.
    """
    check_flow_model(model)
    sampling = model.get_model_object("model_sampling")
    return TimeGrid.of(comfy.samplers.calculate_sigmas(sampling, _SCHEDULER, steps).tolist())


def empty_latent(model: ModelPatcher, vae: VAE) -> Mapping[str, Any]:
    """An empty LATENT of the size that the MODEL is trained at.

    Raises:
        ValueError: The VAE does not say how much smaller its latents are.
    """
    smaller = getattr(vae, "spacial_compression_encode", lambda: 0)()
    if not smaller:
        raise ValueError(
            "latent is not connected, and this VAE does not say how large its latents are; connect "
            "an empty latent of the picture size"
        )
    config = type(model.model.model_config)  # newer ComfyUI gives None for what an instance lacks
    size = getattr(config, "picture_size", PICTURE_SIZE)
    side = max(size // smaller, 1)
    channels = model.get_model_object("latent_format").latent_channels
    return {"samples": torch.zeros(1, channels, side, side)}
