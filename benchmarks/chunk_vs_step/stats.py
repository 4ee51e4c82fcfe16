"""Means over runs with t intervals, paired t tests, and Holm's correction.

The unit is the run (seed).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean, stdev

from scipy import stats

__all__ = [
    "ALPHA",
    "Comparison",
    "Estimate",
    "Gains",
    "compare",
    "correct_together",
    "estimate",
    "holm",
    "paired_p",
]

ALPHA = 0.05
Gains = dict[tuple[str, str], dict[int, float]]
"""(arm, regime) -> seed -> gain."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over runs with its 95 % t interval, which one run alone does not have."""

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired t test of two arms in one regime."""

    arm: str
    against: str
    regime: str
    seeds: tuple[int, ...]
    difference: Estimate
    """arm minus against."""
    p: float | None
    corrected_p: float | None
    """For the tests of its family."""
    p_of_all: float | None = None
    """Corrected for all tests of the study."""

    @property
    def is_found(self) -> bool:
        """Whether the difference counts as found."""
        return self.corrected_p is not None and self.corrected_p < ALPHA


def estimate(values: Sequence[float]) -> Estimate:
    """Average at least one value; the interval has n - 1 degrees of freedom."""
    mean, n = fmean(values), len(values)
    if n < 2:
        return Estimate(values=tuple(values), mean=mean, low=None, high=None)
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return Estimate(values=tuple(values), mean=mean, low=mean - half, high=mean + half)


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of a paired t test; None for fewer than two pairs."""
    n = len(differences)
    if n < 2:
        return None
    mean, error = fmean(differences), stdev(differences) / math.sqrt(n)
    if error == 0:  # the limit of the test
        return float(mean == 0)
    return float(2 * stats.t.sf(abs(mean) / error, n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for the number of tests (Holm, 1979), in the order given."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def compare(gains: Gains, tests: Sequence[tuple[str, str, str]]) -> tuple[Comparison, ...]:
    """Test a family of planned (arm, against, regime), paired by seed.

    Tests that have no common seed yet are left out but count in the correction.
    """
    comparisons = []
    for arm, against, regime in tests:
        ours, theirs = gains.get((arm, regime), {}), gains.get((against, regime), {})
        seeds = sorted(ours.keys() & theirs.keys())
        differences = [ours[seed] - theirs[seed] for seed in seeds]
        if seeds:
            comparisons.append(
                Comparison(
                    arm=arm,
                    against=against,
                    regime=regime,
                    seeds=tuple(seeds),
                    difference=estimate(differences),
                    p=paired_p(differences),
                    corrected_p=None,
                )
            )
    untested = [1.0] * (len(tests) - len(comparisons))
    corrected = holm([1.0 if c.p is None else c.p for c in comparisons] + untested)
    return tuple(
        replace(comparison, corrected_p=None if comparison.p is None else corrected[index])
        for index, comparison in enumerate(comparisons)
    )


def correct_together(
    families: Sequence[tuple[Comparison, ...]], tests: int
) -> list[tuple[Comparison, ...]]:
    """Add the p values that are corrected for all ``tests`` of all families (Holm)."""
    every = [comparison for family in families for comparison in family]
    untested = [1.0] * (tests - len(every))
    corrected = holm([1.0 if c.p is None else c.p for c in every] + untested)
    of_all = iter(
        replace(c, p_of_all=None if c.p is None else p)
        for c, p in zip(every, corrected[: len(every)], strict=True)
    )
    return [tuple(islice(of_all, len(family))) for family in families]
