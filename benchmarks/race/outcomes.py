"""What comes out of rows: units to a reward, values at a number of units, choices by rules.

A measurement is a row with ``units``; that of the base model stands at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import torch

from chunk_grpo_core.measure.interval import Interval, mean_interval

__all__ = [
    "CLEAN_MARGIN",
    "at_units",
    "chosen_candidate",
    "interval_of",
    "reached",
    "winner",
]

CLEAN_MARGIN = 0.02
"""How far cleanliness may fall below the base model's."""
TIE_UNITS = 2_000
Rows = Sequence[Mapping[str, Any]]


def reached(rows: Rows, threshold: float, column: str = "units", running: bool = True) -> float:
    """Units (or seconds) of the first measurement that reaches a reward; infinity without one.

    Args:
        rows: Measurements of a run, the base model's first.
        threshold: Mean reward.
        column: ``units`` or ``seconds``.
        running: Whether the mean of a measurement and the one before it must reach it.
    """
    for before, row in zip(rows, rows[1:], strict=False):
        value = fmean((before["reward"], row["reward"])) if running else row["reward"]
        if value >= threshold:
            return row[column]
    return math.inf


def at_units(rows: Rows, units: float, name: str) -> float | None:
    """A measure at the first measurement from so many units on; None if the run was shorter."""
    return next((row.get(name) for row in rows if row["units"] >= units), None)


def interval_of(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's 95 % interval."""
    return mean_interval(torch.tensor(values, dtype=torch.float64))


def chosen_candidate(candidates: Sequence[Rows], base: Mapping[str, float]) -> int:
    """The candidate of a screening that races: the highest mean reward of its two measurements.

    Those whose cleanliness at the end is more than ``CLEAN_MARGIN`` below the base model's are
    taken only if all are.
    """

    def rank(rows: Rows) -> tuple[bool, float]:
        is_clean = rows[-1]["clean"] >= base["clean"] - CLEAN_MARGIN
        return is_clean, fmean(row["reward"] for row in rows[-2:])

    return max(range(len(candidates)), key=lambda index: rank(candidates[index]))


def winner(
    finals: Mapping[str, Sequence[Rows]],
    base: Mapping[str, float],
    *,
    threshold: float = 0.769,
    units: int = 24_000,
) -> str | None:
    """The arm that wins by the protocol's rule; None if none is clean and reaches the threshold.

    Args:
        finals: Arm -> rows of each seed, the base model's first.
        base: Measures of the base model.
        threshold: Reward that is raced for.
        units: Where cleanliness is compared, and ties are broken.
    """
    ranks = {}
    for arm, runs in finals.items():
        cleans = [at_units(rows, units, "clean") for rows in runs]
        if None in cleans or fmean(cleans) < base["clean"] - CLEAN_MARGIN:
            continue
        middle = median(reached(rows, threshold) for rows in runs)
        if math.isfinite(middle):
            ranks[arm] = middle, fmean(at_units(rows, units, "reward") for rows in runs)
    if not ranks:
        return None
    fewest = min(middle for middle, _ in ranks.values())
    tied = [arm for arm, (middle, _) in ranks.items() if middle < fewest + TIE_UNITS]
    return max(tied, key=lambda arm: ranks[arm][1])
