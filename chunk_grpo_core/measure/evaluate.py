"""Compare policies fairly: held-out prompts, fixed seeds, ODE sampling, paired differences.

Legend: P prompts, S seeds for each prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.cancel import CheckCancel, never_cancel
from ..method.policy import Policy
from ..method.policy_reward import bound, units_of_reward
from ..method.reward import (
    NothingScored,
    Reward,
    RewardBatch,
    check_scored,
    last_error,
    score_or_mask,
)
from ..method.sampler import Sampler
from ..method.schedule import TimeGrid
from ..prompts.example import Example, Prompt, examples_of
from ..train.batch_limit import BatchLimit
from .interval import Interval, mean_interval
from .sampling import draw

__all__ = ["Evaluation", "evaluate", "paired_gain", "paired_means", "prompt_gains", "win_rate"]

_SCORING = 1
"""Steps of sampling that decoding and scoring a picture are taken to last, next to the calls of a
reward that asks the model."""


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
        """Every score, None where it was invalid: ``rewards`` and extras as (P, S) lists; and how
        many pictures are ``missing`` a score."""

        def plain(scores: Tensor) -> list[list[float | None]]:
            return [[s if math.isfinite(s) else None for s in row] for row in scores.tolist()]

        extras = {name: plain(scores) for name, scores in self.extras.items()}
        prompts = [example.to_json() for example in self.examples]
        scores = {"rewards": plain(self.rewards), "extras": extras, "missing": self.missing}
        return {"prompts": prompts, **scores}

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

    @property
    def missing(self) -> int:
        """Pictures without a score; every mean leaves them out."""
        return int((~self.rewards.isfinite()).sum())

    @property
    def mean(self) -> float:
        """Mean of the valid rewards."""
        return float(self.rewards.nanmean())

    def extra_mean(self, name: str) -> float:
        """Mean of one of the further numbers."""
        return float(self.extras[name].nanmean())


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
    sampler: Sampler | None = None,
    limit: BatchLimit | None = None,
    settle: Callable[[Callable[[], list[RewardBatch]]], object] | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
    check_cancel: CheckCancel = never_cancel,
) -> Evaluation:
    """Draw every prompt from fixed noise (:func:`~.sampling.draw`) and score the pictures.

    Args:
        policy: Model; its adapter is used as it is (wrap in ``adapter.disabled()`` for the base).
        reward: The judge. Where it raises :class:`~chunk_grpo_core.method.reward.RewardFailed`, the
            pictures of that prompt have no valid score.
        prompts: P prompts; the reward gets their metadata.
        grid: Noise levels; sampling is deterministic without a ``sampler``.
        seeds: S, pictures of each prompt.
        seed: Seed of the noise; the same seed gives the same noise to every policy.
        solver: What follows the ODE, one of :data:`~chunk_grpo_core.method.solvers.SOLVERS`.
        sampler: Draws the pictures instead.
        limit: Samples that fit into memory at once; as many as do when None.
        settle: Calls its argument, which scores what has no score yet, until it is content, or
            raises; see :meth:`~chunk_grpo_core.train.patience.Patience.until_scored`. Without it,
            one try must give at least one score.
        progress: Called with the fraction done, of drawing and scoring together.
        check_cancel: Called after every call of the model, and before a prompt's pictures are
            decoded and scored.

    Raises:
        NothingScored: No picture has a score.
    """
    limit = limit or BatchLimit()
    reward, examples = bound(reward, policy, limit.fit), examples_of(prompts)
    scoring = _SCORING + units_of_reward(reward)
    total = grid.steps + scoring
    pictures_of_prompts = draw(
        policy,
        examples,
        grid,
        count=seeds,
        seed=seed,
        solver=solver,
        sampler=sampler,
        limit=limit,
        progress=lambda drawn: progress(drawn * grid.steps / total),
        check_cancel=check_cancel,
    )
    pictures = _Pictures(
        reward,
        examples,
        pictures_of_prompts,
        lambda count: progress((grid.steps + scoring * count / len(examples)) / total),
    )
    if settle:
        settle(pictures.attempt)
    else:
        check_scored(pictures.attempt(), reward.name, "the evaluation")
    batches, images = pictures.batches, pictures.first
    details = [batch.details for batch in batches]
    unknown = torch.full((seeds,), torch.nan)  # a reward that fails has no extras
    extras = {
        name: torch.stack([row.get(name, unknown) for row in details])
        for name in dict.fromkeys(name for row in details for name in row)
    }
    rewards = torch.stack([batch.known for batch in batches])
    return Evaluation(examples, rewards, extras, torch.stack(images), last_error(batches))


class _Pictures:
    """The pictures of an evaluation, scored prompt by prompt; those without scores are kept."""

    def __init__(
        self,
        reward: Reward,
        examples: Sequence[Example],
        pictures: Iterable[Tensor],
        tried: Callable[[int], None],
    ) -> None:
        self.reward, self.batches, self.first = reward, [], []
        self._tried = tried
        self._left = iter(zip(examples, pictures, strict=True))
        self._unscored: dict[int, tuple[Example, Tensor]] = {}

    def attempt(self) -> list[RewardBatch]:
        """Score every prompt; called again, those of which no picture has a score."""
        for index, (example, pictures) in self._unscored.copy().items():
            self.batches[index] = self._score(index, example, pictures)
        for example, pictures in self._left:
            self.first.append(pictures[0].clone())
            self.batches.append(self._score(len(self.batches), example, pictures))
            self._tried(len(self.batches))
        return self.batches

    def _score(self, index: int, example: Example, pictures: Tensor) -> RewardBatch:
        batch = score_or_mask(self.reward, pictures, [example] * len(pictures))
        self._unscored[index] = example, pictures
        if batch.valid.any():
            del self._unscored[index]
        return batch


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
    then Student's t interval is taken over the P prompts. Arguments: see :func:`prompt_gains`. A
    further number that no picture has in both evaluations has a gain of NaN.

    Raises:
        NothingScored: Fewer than two prompts have a score in both evaluations.
        ValueError: The evaluations do not belong together, or there are fewer than two prompts.
    """
    gains = prompt_gains(before, after, extra)
    if len(gains) < 2:
        raise ValueError("an interval needs at least 2 prompts")
    gains = gains[torch.isfinite(gains)]
    if not len(gains) and extra is None:
        raise NothingScored(
            "no picture has a score in both evaluations, so there is nothing to compare "
            f"({after.error or before.error or 'scores are missing or not finite'}); repair the "
            "reward"
        )
    if len(gains) < 2 and extra is None:
        raise NothingScored(
            "only 1 prompt has a score in both evaluations, and an interval needs 2 "
            f"({after.error or before.error or 'scores are missing or not finite'}); repair the "
            "reward"
        )
    return mean_interval(gains)


def paired_means(before: Evaluation, after: Evaluation) -> tuple[float, float]:
    """Mean rewards of both over the pictures that have a score in both, the mean over prompts of
    their means, so that they differ by :func:`paired_gain`. Arguments: see :func:`prompt_gains`."""
    in_both = _differences(before, after, None).isfinite()
    if in_both.all():
        return before.mean, after.mean

    def mean(evaluation: Evaluation) -> float:
        rewards = torch.where(in_both, evaluation.rewards.double(), torch.nan)
        return float(rewards.nanmean(1).nanmean())

    return mean(before), mean(after)


def win_rate(before: Evaluation, after: Evaluation, extra: str | None = None) -> float:
    """Fraction of pictures that got better with the same noise; equal scores count one half.

    Pairs of which one score is invalid are left out; without any pair it is NaN. Arguments: see
    :func:`prompt_gains`.

    Raises:
        ValueError: The prompts or the numbers of pictures differ.
    """
    differences = _differences(before, after, extra)
    valid = differences[torch.isfinite(differences)]
    if not len(valid):
        return math.nan
    return float(((valid > 0).double() + 0.5 * (valid == 0).double()).mean())
