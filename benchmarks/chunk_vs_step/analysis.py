"""The analysis of PROTOCOL.md: pure functions from the results of runs to numbers.

The study need not be finished: what is there is analysed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import Any

from .checks import PilotPair, by_halves, pilot_pairs
from .design import (
    ALONE,
    CAPTIONS_PER_ROLLOUT,
    GROUP,
    OTHERS,
    PRIMARY,
    REGIMES,
    STEPS_PER_SAMPLE,
    SWEPT_ARMS,
    SWEPT_RATES,
    UPDATES,
    Run,
    main_runs,
    sweep_runs,
)
from .stats import Comparison, Estimate, Gains, compare, correct_together, estimate

__all__ = [
    "MEASURES",
    "Analysis",
    "Arm",
    "OtherRun",
    "Study",
    "SweptRate",
    "analyse",
    "best_rates",
    "change",
]

MEASURES = ("strict", "clean", "grid", "saturation")
"""Reported beside the reward, as changes against the base model."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that was measured."""

    base: Mapping[str, Mapping[str, Sequence[float]]]
    """``sweep`` and ``main`` -> measure -> one number for each caption, base model."""
    curves: Mapping[str, Mapping[str, Any]]
    """Rule -> relative-L1 curve."""
    runs: Mapping[str, Mapping[str, Any]]
    """Name of a run -> what it wrote."""
    pilot: Mapping[str, Mapping[str, Any]]
    """The same, for runs that were made before the protocol was changed."""

    def change(self, run: Run, measure: str) -> float:
        """A run's mean of a measure minus the base model's; see :func:`change`."""
        return change(self.base, self.runs[run.name], measure)


def change(
    base: Mapping[str, Mapping[str, Sequence[float]]], result: Mapping[str, Any], measure: str
) -> float:
    """Mean of a measure minus the base model's, on the captions that judge the run."""
    captions = "sweep" if result["run"]["sweep"] else "main"
    return fmean(result["held_out"][measure]) - fmean(base[captions][measure])


@dataclass(frozen=True, kw_only=True)
class SweptRate:
    """One learning rate of the sweep."""

    arm: str
    regime: str
    rate: float
    gains: tuple[float, ...]
    """Of each seed, on the choosing captions."""
    chosen: bool
    at_edge: bool
    """Chosen, and no lower or no higher one was tried."""


@dataclass(frozen=True, kw_only=True)
class OtherRun:
    """A run that was made but is no part of the analysis."""

    name: str
    updates: int
    gain: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The runs of one arm in one regime."""

    arm: str
    regime: str
    runs: tuple[str, ...]
    """Their names, by seed."""
    learning_rate: float
    updates: float
    """Of the optimiser, mean over runs."""
    gain: Estimate
    changes: dict[str, Estimate]
    """Of :data:`MEASURES`."""
    passes: float
    """Sample-steps that went through backward, mean over runs. Those whose gradient is zero
    (clipped, or all rewards of the group equal) do not."""
    target_passes: int
    """Sample-steps that every arm was to train on in expectation."""
    seconds: float
    """Training time, mean over runs."""
    clip_fraction: float
    """Share of the drawn samples that were clipped: mean over chunks, rollouts and runs."""
    ratio_error_first_update: float
    """Largest |r - 1| of a first update, over all runs."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All numbers of the report."""

    done: int
    planned: int
    others: tuple[OtherRun, ...]
    """The pilot, and runs that the protocol does not name."""
    base: dict[str, float]
    sweep: tuple[SweptRate, ...]
    arms: tuple[Arm, ...]
    primary: tuple[Comparison, ...]
    secondary: tuple[Comparison, ...]
    alone: tuple[Comparison, ...]
    tests: int
    """Of all three families, done or not."""
    halves: tuple[Comparison, ...]
    """Tests with more than five pairs, over seeds 0 to 4 and 5 to 9 alone."""
    pilot: tuple[PilotPair, ...]


def _updates(result: Mapping[str, Any]) -> int:
    """Updates that a run made."""
    return len(result["rows"]) * REGIMES[result["run"]["regime"]]


def best_rates(study: Study) -> dict[tuple[str, str], float]:
    """The learning rate of each (arm, regime) whose sweep is finished: best mean reward."""
    rates = {}
    for arm, regime in product(SWEPT_ARMS, REGIMES):
        runs = [run for run in sweep_runs() if (run.arm, run.regime) == (arm, regime)]
        if all(run.name in study.runs for run in runs):
            gains = {run: study.change(run, "reward") for run in runs}
            rates[arm, regime] = max(
                SWEPT_RATES,
                key=lambda rate: fmean(g for run, g in gains.items() if run.learning_rate == rate),
            )
    return rates


def _sweep(study: Study, rates: Mapping[tuple[str, str], float]) -> list[SweptRate]:
    rows = []
    for regime, arm, rate in product(REGIMES, SWEPT_ARMS, SWEPT_RATES):
        key, chosen = (arm, regime, rate), rates.get((arm, regime)) == rate
        gains = [
            study.change(run, "reward")
            for run in sweep_runs()
            if (run.arm, run.regime, run.learning_rate) == key and run.name in study.runs
        ]
        is_edge = rate in (min(SWEPT_RATES), max(SWEPT_RATES))
        rows.append(
            SweptRate(
                arm=arm,
                regime=regime,
                rate=rate,
                gains=tuple(gains),
                chosen=chosen,
                at_edge=chosen and is_edge,
            )
        )
    return rows


def _arm(study: Study, runs: Sequence[Run]) -> Arm:
    results = [study.runs[run.name] for run in runs]
    steps = STEPS_PER_SAMPLE // 2 if runs[0].arm in ALONE else STEPS_PER_SAMPLE
    clipped = [part for r in results for row in r["rows"] for part in row["clip_fraction"]]
    return Arm(
        arm=runs[0].arm,
        regime=runs[0].regime,
        runs=tuple(run.name for run in runs),
        learning_rate=runs[0].learning_rate,
        updates=fmean(_updates(result) for result in results),
        gain=estimate([study.change(run, "reward") for run in runs]),
        changes={name: estimate([study.change(run, name) for run in runs]) for name in MEASURES},
        passes=fmean(result["trained_passes"] for result in results),
        target_passes=UPDATES * CAPTIONS_PER_ROLLOUT * GROUP * steps,
        seconds=fmean(result["seconds"] for result in results),
        clip_fraction=fmean(part for part in clipped if part is not None),
        ratio_error_first_update=max(result["ratio_error_first_update"] for result in results),
    )


def _compare_alone(gains: Gains) -> tuple[Comparison, ...]:
    """Each chunk alone against the mean of the other three, over seeds that all four have."""
    gain_of_seed = {arm: gains.get((arm, "on"), {}) for arm in ALONE}
    seeds = set.intersection(*(set(values) for values in gain_of_seed.values()))
    pairs: Gains = {}
    for arm in ALONE:
        others = [gain_of_seed[other] for other in ALONE if other != arm]
        pairs[arm, "on"] = gain_of_seed[arm]
        pairs[f"not {arm}", "on"] = {seed: fmean(o[seed] for o in others) for seed in seeds}
    comparisons = compare(pairs, [(arm, f"not {arm}", "on") for arm in ALONE])
    return tuple(replace(comparison, against="the other three") for comparison in comparisons)


def _other_runs(study: Study, names: Set[str]) -> tuple[OtherRun, ...]:
    others = {f"pilot/{name}": result for name, result in study.pilot.items()}
    others |= {name: result for name, result in study.runs.items() if name not in names}
    return tuple(
        OtherRun(
            name=name,
            updates=_updates(result),
            gain=change(study.base, result, "reward"),
        )
        for name, result in others.items()
    )


def analyse(study: Study) -> Analysis:
    """Do the whole analysis of what is there; arms are reported once all rates are chosen."""
    rates = best_rates(study)
    is_swept = len(rates) == len(SWEPT_ARMS) * len(REGIMES)
    main = main_runs(rates if is_swept else dict.fromkeys(product(SWEPT_ARMS, REGIMES), math.nan))
    planned = [*sweep_runs(), *main]
    names = {run.name for run in planned}
    runs: dict[tuple[str, str], list[Run]] = {}
    for run in main:
        if run.name in study.runs:
            runs.setdefault((run.arm, run.regime), []).append(run)
    gains = {
        key: {run.seed: study.change(run, "reward") for run in runs_of_arm}
        for key, runs_of_arm in runs.items()
    }
    others = dict.fromkeys((run.arm, run.regime) for run in main if run.arm in OTHERS)
    of_primary = [("chunk", "step", regime) for regime in REGIMES]
    of_secondary = [(arm, against, regime) for against in PRIMARY for arm, regime in others]
    tests = len(of_primary) + len(of_secondary) + len(ALONE)
    primary, secondary, alone = correct_together(
        [compare(gains, of_primary), compare(gains, of_secondary), _compare_alone(gains)], tests
    )
    is_long = {(c.arm, c.against, c.regime) for c in (*primary, *secondary) if len(c.seeds) > 5}
    return Analysis(
        done=len(names & study.runs.keys()),
        planned=len(planned),
        others=_other_runs(study, names),
        base={name: fmean(study.base["main"][name]) for name in ("reward", *MEASURES)},
        sweep=tuple(_sweep(study, rates)),
        arms=tuple(_arm(study, runs_of_arm) for runs_of_arm in runs.values()),
        primary=primary,
        secondary=secondary,
        alone=alone,
        tests=tests,
        halves=by_halves(gains, [test for test in of_primary + of_secondary if test in is_long]),
        pilot=pilot_pairs(
            {
                name: (result["run"], change(study.base, result, "reward"))
                for name, result in study.pilot.items()
            }
        ),
    )
