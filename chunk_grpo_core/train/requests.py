"""What an iteration samples: which prompts, with which noise, by which process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from ..algorithms.algorithm import GroupRequest
from ..method.noise import Noise, derive_seed
from ..processes.collective import Share
from ..prompts.example import Example
from .config import TrainConfig

__all__ = ["prompts_of_iteration", "requests_of_iteration"]

P = TypeVar("P")


def prompts_of_iteration(prompts: Sequence[P], iteration: int, count: int, seed: int) -> list[P]:
    """Walk through the prompts in shuffled order, every prompt once in each epoch."""
    chosen = []
    for position in range(iteration * count, (iteration + 1) * count):
        epoch, index = divmod(position, len(prompts))
        generator = torch.Generator().manual_seed(derive_seed(seed, "prompts", epoch))
        order = torch.randperm(len(prompts), generator=generator)
        chosen.append(prompts[int(order[index])])
    return chosen


def requests_of_iteration(
    prompts: Sequence[Example],
    iteration: int,
    shares: Sequence[Share],
    config: TrainConfig,
    latent_shape: tuple[int, ...],
) -> list[GroupRequest]:
    """The groups that one process samples.

    Args:
        prompts: All of the run.
        iteration: 0-based.
        shares: What this process does of an iteration.
        config: Sizes and seed.
        latent_shape: Shape of one latent.
    """
    chosen = prompts_of_iteration(prompts, iteration, config.prompts_per_iteration, config.seed)
    requests = []
    for share in shares:
        seed = derive_seed(config.seed, "rollout", iteration, share.group)
        first, count = share.samples.start, share.samples.stop - share.samples.start
        requests.append(
            GroupRequest(
                iteration=iteration,
                number=share.group,
                samples=share.samples,
                example=chosen[share.group],
                noise=Noise(config.share_initial_noise, seed, count, first),
                latent_shape=latent_shape,
            )
        )
    return requests
