"""Advantages: how much better a sample is than the others of its group.

    A_i = (r_i - mean(r)) / std(r)   inside the group, clamped                 (Eq. 4, GCPO v3)

Several rewards r^k with weights w_k become one advantage in one of two ways:

    combine "rewards"      Eq. 4 on the weighted sum r = sum_k w_k r^k
    combine "advantages"   A_i = sum_k w_k A_i^k / std of these sums over the iteration's samples

The second is GDPO (arXiv 2601.05242, Eq. 4-6): no reward dominates because its numbers are large,
and the size of A does not grow with the number of rewards. Without the last division, which keeps
the size, it is MixGRPO's aggregation of advantages. GDPO also subtracts the mean of the sums over
the iteration; with groups centred at their means that is 0, and otherwise it would give advantages
to groups without signal, so it is left out here.

A prompt that is drawn twice in an iteration has two groups here, each with its own mean.
Flow-GRPO's code (``PerPromptStatTracker``) puts samples of equal prompts into one group.

Legend: P groups (prompts), G samples in a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from ..settings.declared import OneOf, Range, check_settings
from .reward import RewardBatch

__all__ = [
    "CENTRES",
    "COMBINATIONS",
    "SCALES",
    "AdvantageConfig",
    "Advantages",
    "check_scale",
    "group_advantages",
    "iteration_advantages",
]

SCALES = ("group-std", "global-std", "none")
CENTRES = ("mean", "median")
COMBINATIONS = ("rewards", "advantages")

_MIN_STD = 1e-6
"""Below this spread (of rewards, or of sums of advantages) a group carries no signal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageConfig:
    """How rewards become advantages."""

    clamp: Annotated[float, Range(1e-3, 1000)] = 5.0
    """Largest absolute advantage; the last thing that is done to it."""
    scale: Annotated[str, OneOf(SCALES)] = "group-std"
    """What centred rewards are divided by. group-std: their standard deviation in the group
    (Eq. 4). global-std: that of all valid rewards of the iteration (Flow-GRPO), so that groups
    with a small spread count less. none: nothing (Dr. GRPO, arXiv 2503.20783); advantages and
    ``clamp`` are then in units of the reward."""
    centre: Annotated[str, OneOf(CENTRES)] = "mean"
    """What is subtracted in each group: mean (Eq. 4), or median, so that as many samples are
    pushed as pulled however skewed the rewards are (official code, ``use_half_half_adv``). The
    standard deviation is the one around the mean in both cases."""
    keep: Annotated[int | None, Range(1, 512)] = None
    """Train only the ``keep`` best and the ``keep`` worst samples of each group (best-of-N of
    DanceGRPO); None trains all. Advantages are computed from all valid samples first.
    The others get 0, which saves their passes unless the objective has a penalty; the loss is
    still a mean over the whole group. Groups with fewer than 2 keep valid samples train all."""
    combine: Annotated[str, OneOf(COMBINATIONS)] = "rewards"
    """How several rewards become one advantage. rewards: that of their weighted sum. advantages:
    the weighted sum of theirs, so that no reward dominates because its numbers are large (GDPO).
    Changes nothing for one reward."""

    def __post_init__(self) -> None:
        check_settings(self, "advantage")
        if self.combine == "advantages" and self.scale == "none":
            raise ValueError(
                "advantage.combine is advantages, which brings all rewards to one scale, but "
                "advantage.scale is none; use combine rewards, or another scale"
            )


@dataclass(frozen=True)
class Advantages:
    """Advantages of P groups."""

    values: Tensor
    """Float32, shape (P, G); 0 for samples that are not trained."""
    trained: Tensor
    """Bool, shape (P, G): valid samples of groups with signal that were not trimmed away."""
    zero_variance_groups: int
    """Groups whose valid rewards are all equal, or that have fewer than two; they train nothing.
    Of several rewards all must be so, or cancel out."""
    masked: int
    """Samples without a valid reward."""


def check_scale(config: AdvantageConfig, scale_free: bool) -> None:
    """Make sure that settings suit a reward whose parts are to be brought to one scale.

    Raises:
        ValueError: They bring nothing to one scale.
    """
    if scale_free and config.scale == "none":
        raise ValueError(
            "advantage.scale is none, but a balance of two rewards brings both to one scale; take "
            "group-std or global-std, or combine the rewards with weights"
        )


def group_advantages(
    rewards: Tensor, valid: Tensor, config: AdvantageConfig | None = None
) -> Advantages:
    """Advantages of one reward.

    Args:
        rewards: Float32, shape (P, G).
        valid: Bool, shape (P, G); other samples are left out of every statistic and get 0.
        config: All but ``combine`` is looked at.

    Raises:
        ValueError: Shapes differ, or a group has fewer than two samples.
    """
    if rewards.shape != valid.shape or rewards.ndim != 2:
        raise ValueError(
            f"rewards and valid must both have shape (P, G), got {tuple(rewards.shape)} "
            f"and {tuple(valid.shape)}"
        )
    if rewards.shape[1] < 2:
        raise ValueError(
            "group_size is 1; an advantage compares samples of one prompt, so it must be 2 or more"
        )
    config = config or AdvantageConfig()
    return _finish(_normalise(rewards, valid, config), valid, config)


def iteration_advantages(
    batches: Sequence[RewardBatch],
    config: AdvantageConfig | None = None,
    scale_free: bool = False,
) -> Advantages:
    """Advantages of one iteration, from one reward or from several.

    Args:
        batches: P batches of G scores, one for each group.
        config: How they are formed. With ``combine`` advantages, the parts of the batches are
            normalised one by one, over the samples in which the whole combination is valid.
        scale_free: Whether they are so in any case; see ``reward.is_scale_free``.

    Raises:
        ValueError: The batches have different sizes or parts, or fewer than two samples; or
            ``scale`` is none and parts are to be brought to one scale.
    """
    config = config or AdvantageConfig()
    check_scale(config, scale_free)
    if scale_free:
        config = replace(config, combine="advantages")
    values = torch.stack([batch.values for batch in batches])
    valid = torch.stack([batch.valid for batch in batches])
    if all(batch.are_answers for batch in batches):
        return Advantages(values, valid, zero_variance_groups=0, masked=0)
    weighted = _weighted_parts(batches)
    if config.combine == "rewards" or len(weighted) < 2:
        return group_advantages(values, valid, config)
    total = torch.zeros_like(values, dtype=torch.float64)
    for weight, rewards in weighted:
        total += weight * _normalise(rewards, valid, config)
    _, spread = _moments(total.view(1, -1), valid.view(1, -1))
    return _finish(total / spread.clamp(min=_MIN_STD), valid, config)


def _weighted_parts(batches: Sequence[RewardBatch]) -> list[tuple[float, Tensor]]:
    """Weight and scores (P, G) of every part with a weight other than 0.

    A batch that failed as a whole has no parts; it must not have a valid score then.
    """
    parts = next((batch.parts for batch in batches if batch.parts), ())
    expected = [(part.name, part.weight) for part in parts]
    for batch in batches:
        actual = [(part.name, part.weight) for part in batch.parts]
        if actual != expected and (actual or batch.valid.any()):
            raise ValueError(
                "the rewards of one iteration must have the same parts, "
                f"got {expected} and {actual}"
            )
    return [
        (weight, torch.stack([b.parts[index].values if b.parts else b.values for b in batches]))
        for index, (_, weight) in enumerate(expected)
        if weight
    ]


def _moments(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n - 1) of each row over its valid entries, each (P, 1).

    Entries that are not valid must be 0. A row with fewer than two valid ones has a deviation of 0.
    """
    count = valid.sum(1, keepdim=True)
    mean = values.sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(valid, values - mean, torch.zeros_like(values))
    return mean, (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()


def _normalise(rewards: Tensor, valid: Tensor, config: AdvantageConfig) -> Tensor:
    """Centre and scale, float64, shape (P, G); 0 for masked samples and groups without signal."""
    filled = torch.where(valid, rewards, torch.zeros_like(rewards)).double()
    centre, group_std = _moments(filled, valid)
    has_signal = group_std > _MIN_STD
    if config.centre == "median":
        gaps = torch.where(valid, filled, torch.nan)
        centre = gaps.nanquantile(0.5, dim=1, keepdim=True)
    if config.scale == "global-std":
        _, scale = _moments(filled.view(1, -1), valid.view(1, -1))
    else:
        scale = group_std if config.scale == "group-std" else torch.ones_like(group_std)
    scaled = (filled - centre) / scale.clamp(min=_MIN_STD)
    return torch.where(valid & has_signal, scaled, torch.zeros_like(scaled))


def _finish(values: Tensor, valid: Tensor, config: AdvantageConfig) -> Advantages:
    """Drop groups without signal, trim, clamp, count."""
    has_signal = _moments(values, valid)[1] > _MIN_STD
    trained = valid & has_signal
    if config.keep is not None:
        trained &= _extremes(values, valid, config.keep)
    clamped = values.clamp(-config.clamp, config.clamp)
    return Advantages(
        values=torch.where(trained, clamped, torch.zeros_like(clamped)).float(),
        trained=trained,
        zero_variance_groups=int((~has_signal).sum()),
        masked=int((~valid).sum()),
    )


def _extremes(values: Tensor, valid: Tensor, keep: int) -> Tensor:
    """The ``keep`` lowest and highest valid values of each row, bool; of equal ones, the first
    count as lower."""
    last = torch.where(valid, values, torch.inf)
    rank = last.argsort(dim=1, stable=True).argsort(1)
    count = valid.sum(1, keepdim=True)
    return valid & ((rank < keep) | (rank >= count - keep))
