"""Draw pictures without sampling noise.

Legend: S pictures of each prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..method.policy import Policy, Velocity
from ..method.rollout import sample_ode
from ..method.schedule import TimeGrid
from ..train.batch_limit import BatchLimit

__all__ = ["draw"]


@torch.no_grad()
def draw(
    policy: Policy,
    prompts: Sequence[str],
    grid: TimeGrid,
    *,
    count: int,
    seed: int,
    limit: BatchLimit | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[Tensor]:
    """Sample the ODE from fixed noise; the noise is that of :func:`~.evaluate.evaluate`.

    Args:
        policy: Model; its adapter is used as it is.
        prompts: Captions.
        grid: Noise levels.
        count: S, 1 or more.
        seed: Noise seed of the first prompt; the next one has the next.
        limit: Samples that fit into memory at once; as many as do when None.
        progress: Called with the fraction done.

    Returns:
        For each prompt, pictures in 0..1, (S, H, W, 3).
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be 1 or more")
    limit = limit or BatchLimit()
    decode_limit = replace(limit, size=None)

    def sample(velocity: Velocity) -> list[Tensor]:
        latents = []
        for index, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed + index)
            x_1 = torch.randn(count, *policy.latent_shape, generator=generator)
            latents.append(
                sample_ode(
                    limit.fit(velocity),
                    prompt,
                    grid,
                    x_1,
                    device=policy.device,
                    batch_size=limit.size,
                )
            )
            progress((index + 1) / len(prompts))
        return latents

    return [decode_limit.join(policy.decode, x_0) for x_0 in policy.run(sample)]
