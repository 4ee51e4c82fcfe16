"""Draw pictures of given prompts from fixed noise; roll groups of them out with noise.

Legend: S pictures of each prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..method.cancel import CheckCancel, never_cancel
from ..method.noise import Noise
from ..method.policy import Policy, Velocity
from ..method.rollout import Trajectory, rollout
from ..method.rules import SdeConfig
from ..method.sampler import Sampler
from ..method.schedule import TimeGrid
from ..method.stream import Stream
from ..method.walk import sample_ode
from ..prompts.example import Example, Prompt, examples_of
from ..train.batch_limit import BatchLimit

__all__ = ["draw", "roll_out"]


@torch.no_grad()
def draw(
    policy: Policy,
    prompts: Sequence[Prompt],
    grid: TimeGrid,
    *,
    count: int,
    seed: int,
    solver: str = "euler",
    sampler: Sampler | None = None,
    limit: BatchLimit | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
    check_cancel: CheckCancel = never_cancel,
) -> Iterator[Tensor]:
    """Sample all prompts in one phase of the policy, then decode prompt by prompt.

    The noise of prompt number i is what ComfyUI draws for a batch of S pictures with noise seed
    ``seed + i``, so that standard nodes can reproduce each picture.

    Args:
        policy: Model; its adapter is used as it is (wrap in ``adapter.disabled()`` for the base).
        prompts: What to draw.
        grid: Noise levels; sampling is deterministic.
        count: S, 1 or more.
        seed: Noise seed of the first prompt, 0 to 2^64 - 1; the next one has the next, and 0
            comes behind the last.
        solver: What follows the ODE, one of :data:`~chunk_grpo_core.method.solvers.SOLVERS`.
        sampler: Samples instead; noise that it draws depends on ``seed`` and on the picture.
        limit: Samples that fit into memory at once; as many as do when None.
        progress: Called with the fraction sampled.
        check_cancel: Called after every call of the model, and before a prompt's pictures are
            decoded.

    Returns:
        For each prompt, pictures in 0..1, (S, H, W, 3). All latents are sampled already; each
        prompt is decoded when it is asked for.

    Raises:
        ValueError: ``count`` is below 1, or there is no such solver.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be 1 or more")
    limit = limit or BatchLimit()
    decode_limit = replace(limit, size=None)

    def x_0_of(velocity: Velocity, example: Example, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x_1 = torch.randn(count, *policy.latent_shape, generator=generator)
        size, fitting = limit.size, limit.fit(velocity)
        if sampler is None:
            return sample_ode(
                fitting,
                example,
                grid,
                x_1,
                solver=solver,
                device=policy.device,
                batch_size=size,
                check_cancel=check_cancel,
            )
        stream = Stream.of(policy, fitting, batch_size=size, check_cancel=check_cancel)
        return sampler.sample(stream, example, grid, x_1, Noise(False, seed, count).step_seeds)

    def sample(velocity: Velocity) -> list[Tensor]:
        latents = []
        for index, example in enumerate(examples_of(prompts)):
            latents.append(x_0_of(velocity, example, (seed + index) % 2**64))
            progress((index + 1) / len(prompts))
        return latents

    @torch.no_grad()
    def decode(x_0: Tensor) -> Tensor:
        check_cancel()
        return decode_limit.join(policy.decode, x_0)

    return map(decode, policy.run(sample))


def roll_out(
    policy: Policy,
    prompts: Sequence[Prompt],
    grid: TimeGrid,
    sde: SdeConfig,
    *,
    group_size: int,
    seeds: Sequence[int],
    limit: BatchLimit | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
    check_cancel: CheckCancel = never_cancel,
) -> list[Trajectory]:
    """Roll out a group of every prompt, in one phase of the policy; no two samples share noise.

    Args:
        policy: Model; its adapter is used as it is.
        prompts: One group for each.
        grid: Noise levels.
        sde: The rule of the steps.
        group_size: Samples of each prompt, 1 or more.
        seeds: Seed of the noise of each prompt.
        limit: Samples that fit into memory at once; as many as do when None.
        progress: Called with the fraction done.
        check_cancel: Called after every call of the model.
    """
    limit = limit or BatchLimit()

    def sample(velocity: Velocity) -> list[Trajectory]:
        groups = []
        for example, seed in zip(prompts, seeds, strict=True):
            group = rollout(
                limit.fit(velocity),
                example,
                grid,
                sde,
                Noise(False, seed, group_size),
                policy.latent_shape,
                device=policy.device,
                batch_size=limit.size,
                check_cancel=check_cancel,
            )
            groups.append(group)
            progress(len(groups) / len(prompts))
        return groups

    return policy.run(sample)
