"""Compare two MODELs as Train LoRA measures: held-out prompts, fixed noise, the same kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...chunk_grpo_core.measure.both import BASE, LORA, on_both_sides
from ...chunk_grpo_core.measure.duels import Duel, duel_pictures
from ...chunk_grpo_core.measure.evaluate import Evaluation, evaluate
from ...chunk_grpo_core.method.policy_reward import bound
from ...chunk_grpo_core.method.reward import Reward
from ...chunk_grpo_core.method.schedule import TimeGrid
from ...chunk_grpo_core.rewards.follows_prompt import EMPTY
from ...chunk_grpo_core.runs.held_out import check_held_out
from ...chunk_grpo_core.watch.comparison import Comparison
from ..types import PromptSet
from .any_sampler import AnySampler, check_sampler
from .conditioning import Conditioning
from .host import check_interrupt, progress_bar, show_progress
from .latents import latent_shape_of
from .memory import batch_limit
from .policy import NativePolicy

__all__ = ["Compared", "compare_models"]

_UNITS = 100
"""Units of the progress bar for one model."""


class Compared(NamedTuple):
    """What both models gave."""

    comparison: Comparison
    duels: tuple[list[Tensor], list[Tensor]]
    """A picture (H, W, 3) of each duel: of the base, and of the other model."""


def compare_models(
    *,
    base: Any,
    other: Any,
    vae: Any,
    prompts: PromptSet,
    reward: Reward,
    grid: TimeGrid,
    latent: dict[str, Any],
    seeds: int,
    noise_seed: int,
    batch_size: int | None,
    negative: Conditioning | None = None,
    cfg: float = 1.0,
    sampler: Any = None,
    duels: Sequence[Duel] = (),
) -> Compared:
    """Evaluate both MODELs on the held-out prompts, one after the other, and draw their duels.

    Args:
        base: MODEL.
        other: MODEL to compare with it, of the same kind.
        vae: Decodes the pictures of both.
        prompts: Only the held-out ones are used.
        reward: The judge.
        grid: Noise levels.
        latent: Gives the picture size.
        seeds: Pictures of each prompt.
        noise_seed: Noise seed of the first prompt.
        batch_size: Samples in one call of the model; all of a prompt when None.
        negative: Negative conditioning for all prompts; needed when ``cfg`` is not 1.
        cfg: Scale of classifier-free guidance; 1 means none.
        sampler: SAMPLER that draws the pictures; Euler steps of the library when None.
        duels: On held-out prompts.

    Raises:
        ValueError: Fewer than two prompts are held out, or something does not fit.
        InterruptProcessingException: The user pressed Cancel.
    """
    check_held_out(prompts.held_out)
    if sampler is not None:
        check_sampler(sampler, cfg)
    bar = progress_bar(2 * _UNITS)
    limit = batch_limit(batch_size)
    texts = [example.text for example in (*prompts.held_out, EMPTY)]
    conditioning = {t: prompts.conditioning[t] for t in texts if t in prompts.conditioning}

    def policy_of(model: Any) -> NativePolicy:
        return NativePolicy(
            model,
            vae,
            conditioning,
            latent_shape_of(model, latent),
            None,
            negative=negative,
            cfg=cfg,
            batch=batch_size or seeds,
            limit=limit,
            sigmas=grid.sigmas,
        )

    measured = seeds * len(prompts.held_out)
    share = measured / (measured + len(duels))

    def work(
        policy: NativePolicy, progress: Callable[[float], None]
    ) -> tuple[Evaluation, list[Tensor]]:
        any_sampler = None if sampler is None else AnySampler(sampler, policy, limit)
        evaluation = evaluate(
            policy,
            judge,
            prompts.held_out,
            grid,
            seeds=seeds,
            seed=noise_seed,
            sampler=any_sampler,
            limit=limit,
            progress=lambda fraction: progress(share * fraction),
            check_cancel=check_interrupt,
        )
        if not duels:
            return evaluation, []
        pictures = duel_pictures(
            policy,
            duels,
            grid,
            sampler=any_sampler,
            limit=limit,
            progress=lambda fraction: progress(share + (1 - share) * fraction),
            check_cancel=check_interrupt,
        )
        return evaluation, pictures

    done = {BASE: 0, LORA: _UNITS}
    with torch.inference_mode(False):
        policy = policy_of(base)
        judge = bound(reward, policy, limit.fit)  # both are judged by the base
        sides = [(BASE, nullcontext(policy)), (LORA, nullcontext(policy_of(other)))]
        (before, of_base), (after, of_other) = on_both_sides(
            sides,
            work,
            lambda side, fraction: show_progress(bar, done[side] + int(_UNITS * fraction)),
        )
    comparison = Comparison(before=before, after=after, reward=reward.name, noise_seed=noise_seed)
    return Compared(comparison, (of_base, of_other))
