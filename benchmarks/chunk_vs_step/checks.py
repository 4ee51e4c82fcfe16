"""How firm the results are: other seeds, other runs. No part of the protocol's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .design import PRIMARY_SEEDS
from .stats import Comparison, Gains, compare

__all__ = ["HALVES", "STABLE_RATE", "PilotPair", "by_halves", "pilot_pairs"]

HALVES = (range(5), range(5, len(PRIMARY_SEEDS)))
STABLE_RATE = 1e-3
"""Above it, runs of the pilot broke the model: they say nothing about chunks."""


@dataclass(frozen=True, kw_only=True)
class PilotPair:
    """Two runs of the pilot that differ in nothing but ``chunk`` and ``step``."""

    folder: str
    regime: str
    rate: float
    seed: int
    sweep: bool
    """Judged on the choosing captions; otherwise on the held-out ones."""
    difference: float
    """Gain of ``chunk`` minus that of ``step``."""


def by_halves(gains: Gains, tests: Sequence[tuple[str, str, str]]) -> tuple[Comparison, ...]:
    """Each (arm, against, regime) over either half of the seeds alone, uncorrected."""
    found = []
    for test in tests:
        for half in HALVES:
            of_half = {
                key: {seed: gain for seed, gain in of_arm.items() if seed in half}
                for key, of_arm in gains.items()
            }
            found += compare(of_half, [test])
    return tuple(found)


def pilot_pairs(runs: Mapping[str, tuple[Mapping[str, Any], float]]) -> tuple[PilotPair, ...]:
    """Pair runs that agree in folder, regime, learning rate, seed and captions.

    Args:
        runs: Path of a pilot run -> its settings (those of a ``Run``), and its gain.
    """
    gains: dict[tuple[str, str, float, int, bool], dict[str, float]] = {}
    for path, (run, gain) in runs.items():
        key = (
            path.rpartition("/")[0],
            run["regime"],
            run["learning_rate"],
            run["seed"],
            run["sweep"],
        )
        gains.setdefault(key, {})[run["arm"]] = gain
    return tuple(
        PilotPair(
            folder=folder,
            regime=regime,
            rate=rate,
            seed=seed,
            sweep=sweep,
            difference=of_arm["chunk"] - of_arm["step"],
        )
        for (folder, regime, rate, seed, sweep), of_arm in sorted(gains.items())
        if {"chunk", "step"} <= of_arm.keys()
    )
