"""Every reward's gain on the held-out prompts, and the alarm of one that fell.

What a training rewards is often bought with what it does not: a taste with the captions. So each
reward of a combination, also one of weight 0 that is only watched, is compared with the base model
on the same prompts and noise whenever they are measured. Rows of the training cannot tell: each
iteration has other prompts, which differ by more than a fall that matters.

The alarm is raised where the 99.8 % interval of the mean change lies below 0: by chance once in a
thousand looks, and a run has 50 at most. Simulated runs without a change and trainings on simulated
tastes (``benchmarks/taste_rl``) hold it to that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..method.reward import NothingScored, Reward
from ..rewards.combined import CombinedReward
from ..train.alarms import REWARD_FELL, Alarm
from .evaluate import Evaluation, paired_gain
from .interval import t_quantile

__all__ = ["SURE", "fallen", "fallen_in", "reward_gains"]

SURE = 0.998
"""Of the interval that must lie below 0."""

_JUDGED = ("weight", "mean", "gain", "low", "high", "prompts")

Gains = Mapping[str, Mapping[str, float]]


def reward_gains(before: Evaluation, after: Evaluation, reward: Reward) -> Gains:
    """Weight, mean, gain with its 95 % interval, and number of prompts, of each reward.

    Args:
        before: The base model.
        after: The same prompts and noise.
        reward: What scored both; each part of a combination is one.
    """
    if isinstance(reward, CombinedReward):
        weights: Mapping[str, float] = {n: part.weight for n, part in reward.parts.items()}
        extras: Mapping[str, str | None] = {name: name for name in weights}
    else:
        weights, extras = {reward.name: 1.0}, {reward.name: None}
    gains = {}
    for name, weight in weights.items():
        extra = extras[name]
        if extra is not None and not (extra in before.extras and extra in after.extras):
            continue  # it failed throughout
        scores = after.rewards if extra is None else after.extras[extra]
        try:
            gain = paired_gain(before, after, extra)
        except NothingScored:
            continue
        gains[name] = {
            "weight": weight,
            "mean": float(scores.nanmean()),
            "gain": gain.mean,
            "low": gain.low,
            "high": gain.high,
            "prompts": len(after.examples),
        }
    return gains


def fallen(row: Mapping[str, Any]) -> Alarm | None:
    """The alarm of one measurement; None if no reward fell.

    Args:
        row: Of held_out.jsonl, or the fields of its event. Rewards with a weight below 0 are to
            fall.
    """
    rewards = row.get("rewards")
    entries = rewards.items() if isinstance(rewards, Mapping) else ()
    falls = [fall for name, one in entries if (fall := _fall(name, one))]
    if not falls or not _is_finite(row.get("iterations")):
        return None
    worst = min(falls, key=lambda fall: fall.certainty)
    return Alarm(
        REWARD_FELL,
        int(row["iterations"]),
        worst.text,
        f"Whatever else rises may be bought with it: give {worst.name} a larger weight, raise the "
        "leash (objective.kl_ref, or forward.kl_ref), or take an earlier checkpoint",
    )


@dataclass(frozen=True)
class _Fall:
    name: str
    certainty: float
    """The mean change over half of the interval, below -1."""
    text: str


def _fall(name: object, numbers: object) -> _Fall | None:
    """Judge the numbers of one reward; those of a damaged file are left out."""
    if not isinstance(numbers, Mapping):
        return None
    values: list[Any] = [numbers.get(key) for key in _JUDGED]
    if not all(map(_is_finite, values)):
        return None
    weight, mean, gain, low, high, prompts = map(float, values)
    if weight < 0 or prompts < 2:
        return None
    degrees = int(prompts) - 1
    half = (high - low) / 2 * t_quantile(SURE, degrees) / t_quantile(0.95, degrees)
    if gain + half >= 0:
        return None
    text = (
        f"{name} fell from {mean - gain:.3g} to {mean:.3g} on the {int(prompts)} held-out prompts "
        f"(same noise; change {gain:+.3g}, {100 * SURE:.1f} % interval {gain - half:+.3g} to "
        f"{gain + half:+.3g})"
    )
    return _Fall(str(name), gain / half if half else -math.inf, text)


def fallen_in(rows: Sequence[Mapping[str, Any]]) -> tuple[Alarm, ...]:
    """The first alarm of the measurements of a run, if there is one."""
    return tuple(alarm for alarm in map(fallen, rows) if alarm)[:1]


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)
