"""Compare policies fairly: held-out prompts, fixed seeds, ODE sampling, paired differences.

Legend: P prompts, S seeds for each prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..method.cancel import CheckCancel, never_cancel
from ..method.policy import Policy
from ..method.reward import (
    NothingScored,
    Reward,
    RewardBatch,
    check_scored,
    last_error,
    score_or_mask,
)
from ..method.schedule import TimeGrid
from ..prompts.example import Example, Prompt, examples_of
from ..train.batch_limit import BatchLimit
from .sampling import draw

__all__ = ["Evaluation", "Interval", "evaluate", "paired_gain", "prompt_gains", "win_rate"]


@dataclass(frozen=True)
class Evaluation:
    """Pictures of fixed seeds and their scores."""

    examples: tuple[Example, ...]
    """P prompts."""
    rewards: Tensor
    """CPU float32, shape (P, S); NaN where the reward was invalid."""
    extras: dict[str, Tensor]
    """Further numbers, and the scores of a combination's parts, each of shape (P, S); NaN where
    invalid."""
    images: Tensor
    """The first seed's picture of each prompt, (P, H, W, 3)."""
    error: str = ""
    """Why rewards are missing, where the reward said so."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", examples_of(self.examples))

    @property
    def prompts(self) -> tuple[str, ...]:
        """The texts of the P prompts, to show."""
        return tuple(example.text for example in self.examples)

    def to_json(self) -> dict[str, object]:
        """Every score, None where it was invalid: ``rewards`` and extras as (P, S) lists."""

        def plain(scores: Tensor) -> list[list[float | None]]:
            return [[s if math.isfinite(s) else None for s in row] for row in scores.tolist()]

        extras = {name: plain(scores) for name, scores in self.extras.items()}
        prompts = [example.to_json() for example in self.examples]
        return {"prompts": prompts, "rewards": plain(self.rewards), "extras": extras}

    @classmethod
    def joined(cls, evaluations: Sequence[Evaluation]) -> Evaluation:
        """Put evaluations of different prompts together, one or more; extras that one of them lacks
        are NaN there."""
        unknown = [torch.full_like(part.rewards, torch.nan) for part in evaluations]
        return cls(
            tuple(example for part in evaluations for example in part.examples),
            torch.cat([part.rewards for part in evaluations]),
            {
                name: torch.cat(
                    [p.extras.get(name, u) for p, u in zip(evaluations, unknown, strict=True)]
                )
                for name in dict.fromkeys(name for part in evaluations for name in part.extras)
            },
            torch.cat([part.images for part in evaluations]),
            next((part.error for part in reversed(evaluations) if part.error), ""),
        )

    def check_scored(self, reward: str) -> Evaluation:
        """Return this evaluation if at least one picture has a score.

        Args:
            reward: Name of the reward, for the message.

        Raises:
            NothingScored: None has.
        """
        scores = replace(RewardBatch.of(self.rewards.flatten()), error=self.error)
        check_scored([scores], reward, "the evaluation")
        return self

    @property
    def mean(self) -> float:
        """Mean of the valid rewards."""
        return float(self.rewards.nanmean())

    def extra_mean(self, name: str) -> float:
        """Mean of one of the further numbers."""
        return float(self.extras[name].nanmean())


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


@torch.no_grad()
def evaluate(
    policy: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    grid: TimeGrid,
    *,
    seeds: int,
    seed: int = 0,
    solver: str = "euler",
    limit: BatchLimit | None = None,
    is_part: bool = False,
    progress: Callable[[float], None] = lambda fraction: None,
    check_cancel: CheckCancel = never_cancel,
) -> Evaluation:
    """Draw every prompt from fixed noise (:func:`~.sampling.draw`) and score the pictures.

    Args:
        policy: Model; its adapter is used as it is (wrap in ``adapter.disabled()`` for the base).
        reward: The judge. Where it raises :class:`~chunk_grpo_core.method.reward.RewardFailed`, the
            pictures of that prompt have no valid score.
        prompts: P prompts; the reward gets their metadata.
        grid: Noise levels; sampling is deterministic.
        seeds: S, pictures of each prompt.
        seed: Seed of the noise; the same seed gives the same noise to every policy.
        solver: What follows the ODE, one of :data:`~chunk_grpo_core.method.solvers.SOLVERS`.
        limit: Samples that fit into memory at once; as many as do when None.
        is_part: Other prompts of the same evaluation are measured elsewhere, so that here all
            scores may be missing.
        progress: Called with the fraction done.
        check_cancel: Called after every call of the model, and before a prompt's pictures are
            decoded and scored.

    Raises:
        NothingScored: No picture has a score.
    """
    examples = examples_of(prompts)
    pictures_of_prompts = draw(
        policy,
        examples,
        grid,
        count=seeds,
        seed=seed,
        solver=solver,
        limit=limit,
        progress=progress,
        check_cancel=check_cancel,
    )
    batches, images = [], []
    for example, pictures in zip(examples, pictures_of_prompts, strict=True):
        batches.append(score_or_mask(reward, pictures, [example] * seeds))
        images.append(pictures[0])
    details = [batch.details for batch in batches]
    unknown = torch.full((seeds,), torch.nan)  # a reward that fails has no extras
    extras = {
        name: torch.stack([row.get(name, unknown) for row in details])
        for name in dict.fromkeys(name for row in details for name in row)
    }
    rewards = torch.stack([batch.known for batch in batches])
    evaluation = Evaluation(examples, rewards, extras, torch.stack(images), last_error(batches))
    return evaluation if is_part else evaluation.check_scored(reward.name)


def _differences(before: Evaluation, after: Evaluation, extra: str | None) -> Tensor:
    """After minus before on the same prompt and noise, float64, (P, S); NaN where one is invalid.

    Raises:
        ValueError: The two do not belong together.
    """
    if before.examples != after.examples:
        raise ValueError("the two evaluations used different prompts and cannot be compared")
    old, new = (e.rewards if extra is None else e.extras[extra] for e in (before, after))
    if old.shape != new.shape:
        raise ValueError(
            f"one evaluation has {old.shape[1]} pictures of each prompt and the other "
            f"{new.shape[1]}; they cannot be compared"
        )
    return new.double() - old.double()


def prompt_gains(before: Evaluation, after: Evaluation, extra: str | None = None) -> Tensor:
    """Gain of each prompt, averaged over its seeds, float64, (P,); NaN where nothing is valid.

    Args:
        before: The base.
        after: What is compared with it, on the same prompts and noise.
        extra: One of the further numbers instead of the reward.

    Raises:
        ValueError: The prompts or the numbers of pictures differ.
    """
    return _differences(before, after, extra).nanmean(1)


def paired_gain(before: Evaluation, after: Evaluation, extra: str | None = None) -> Interval:
    """Mean reward gain on the same prompts and noise, with its 95 % interval.

    Prompts, not pictures, are the independent units: differences are averaged over seeds first,
    then a normal interval is taken over the P prompts. Arguments: see :func:`prompt_gains`. A
    further number that no picture has in both evaluations has a gain of NaN.

    Raises:
        NothingScored: No picture has a reward in both evaluations.
        ValueError: The evaluations do not belong together, or there are fewer than two prompts.
    """
    gains = prompt_gains(before, after, extra)
    if len(gains) < 2:
        raise ValueError("an interval needs at least 2 prompts")
    gains = gains[torch.isfinite(gains)]
    if not len(gains):
        if extra is not None:
            return Interval(math.nan, math.nan, math.nan)
        raise NothingScored(
            "no picture has a score in both evaluations, so there is nothing to compare "
            f"({after.error or before.error or 'scores are missing or not finite'}); repair the "
            "reward"
        )
    mean = float(gains.mean())
    half = 1.96 * float(gains.std()) / math.sqrt(len(gains))
    return Interval(mean, mean - half, mean + half)


def win_rate(before: Evaluation, after: Evaluation, extra: str | None = None) -> float:
    """Fraction of pictures that got better with the same noise; equal scores count one half.

    Pairs of which one score is invalid are left out. Arguments: see :func:`prompt_gains`.

    Raises:
        ValueError: The prompts or the numbers of pictures differ.
    """
    differences = _differences(before, after, extra)
    valid = differences[torch.isfinite(differences)]
    return float(((valid > 0).double() + 0.5 * (valid == 0).double()).mean())
