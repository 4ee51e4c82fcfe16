"""Roll out groups with the base MODEL, outside ComfyUI's inference mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...chunk_grpo_core.measure.sampling import roll_out as core_roll_out
from ...chunk_grpo_core.method.noise import derive_seed
from ...chunk_grpo_core.method.rules import SdeConfig
from ...chunk_grpo_core.method.schedule import TimeGrid
from ...chunk_grpo_core.prompts.example import Example
from ..types import PromptSet, Rollouts
from .conditioning import Conditioning
from .host import check_interrupt, progress_bar, show_progress
from .latents import latent_shape_of
from .memory import batch_limit
from .policy import NativePolicy

__all__ = ["roll_out"]


def roll_out(
    model: Any,
    prompts: PromptSet,
    chosen: Sequence[Example],
    grid: TimeGrid,
    sde: SdeConfig,
    latent: dict[str, Any],
    group_size: int,
    seed: int,
    *,
    negative: Conditioning | None = None,
    cfg: float = 1.0,
) -> tuple[Rollouts, Tensor]:
    """Sample a group for each of the ``chosen`` prompts with the kernels of training.

    Returns:
        The trajectories, and all finished latents as a LATENT's samples, prompt by prompt.
    """
    with torch.inference_mode(False):
        policy = NativePolicy(
            model,
            None,
            {example.text: prompts.conditioning[example.text] for example in chosen},
            latent_shape_of(model, latent),
            None,
            negative=negative,
            cfg=cfg,
            batch=group_size,
            sigmas=grid.sigmas,
        )
        bar = progress_bar(len(chosen))
        groups = core_roll_out(
            policy,
            chosen,
            grid,
            sde,
            group_size=group_size,
            seeds=[derive_seed(seed, "rollout", index) for index in range(len(chosen))],
            limit=batch_limit(None),
            progress=lambda fraction: show_progress(bar, round(fraction * len(chosen))),
            check_cancel=check_interrupt,
        )
        x_0 = torch.cat([group.x_0 for group in groups])
        return Rollouts(groups, policy.name), model.model.process_latent_out(x_0)
