"""What the numbers say, in words and cells; no sentence here knows an outcome beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from .analysis import Analysis, Arm
from .checks import STABLE_RATE
from .design import ALONE
from .stats import ALPHA, Comparison, Estimate

__all__ = [
    "REGIME_NAMES",
    "best_arms",
    "interval",
    "of_regime",
    "p_value",
    "pilot_sentence",
    "plus_minus",
    "summary",
    "verdict",
]

REGIME_NAMES = {"on": "on-policy", "off": "off-policy"}


def interval(value: Estimate) -> str:
    """A signed mean with its interval."""
    if value.low is None or value.high is None:
        return f"{value.mean:+.4f} (one run)"
    return f"{value.mean:+.4f} ({value.low:+.4f} to {value.high:+.4f})"


def plus_minus(value: Estimate, digits: int = 4) -> str:
    """A signed mean with half the width of its interval."""
    half = "" if value.high is None else f" ± {value.high - value.mean:.{digits}f}"
    return f"{value.mean:+.{digits}f}{half}"


def p_value(value: float | None) -> str:
    """A p value; empty if there was no test."""
    if value is None:
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def verdict(comparison: Comparison) -> str:
    """Say what a test found; if nothing, what its interval rules out."""
    difference = comparison.difference
    if comparison.corrected_p is None:
        return "too few runs for a test"
    if comparison.is_found:
        return f"{comparison.arm} is {'higher' if difference.mean > 0 else 'lower'}"
    if comparison.p is not None and comparison.p < ALPHA:
        return "not found after correction"
    return f"not found; below {difference.low:+.4f} and above {difference.high:+.4f} is ruled out"


def of_regime(arms: Iterable[Arm], regime: str) -> dict[str, Arm]:
    """The arms of one regime, by name."""
    return {arm.arm: arm for arm in arms if arm.regime == regime}


def _primary_sentence(analysis: Analysis, comparison: Comparison) -> str:
    arms = of_regime(analysis.arms, comparison.regime)
    gains = " and ".join(
        f"`{name}` gains {interval(arms[name].gain)} over the base model in "
        f"{len(arms[name].runs)} runs"
        for name in (comparison.arm, comparison.against)
    )
    corrected = (
        f"p {p_value(comparison.corrected_p)} in its family of {len(analysis.primary)}, "
        f"{p_value(comparison.p_of_all)} corrected for all {analysis.tests} tests: "
        if comparison.p is not None
        else ""
    )
    return (
        f"{REGIME_NAMES[comparison.regime].capitalize()}, {gains}; the difference is "
        f"{interval(comparison.difference)}, {corrected}{verdict(comparison)}."
    )


def _found_sentence(what: str, comparisons: Sequence[Comparison]) -> str:
    differences = [
        f"`{c.arm}` {'above' if c.difference.mean > 0 else 'below'} "
        f"{c.against if c.arm in ALONE else f'`{c.against}`'} "
        f"{REGIME_NAMES[c.regime]} ({c.difference.mean:+.4f})"
        for c in comparisons
        if c.is_found
    ]
    tested = sum(c.p is not None for c in comparisons)
    listed = f": {', '.join(differences)}" if differences else ""
    return f"Of {tested} {what}, {len(differences) or 'none'} found a difference{listed}."


def best_arms(analysis: Analysis, regime: str) -> str:
    """Which arm over all steps has the highest mean reward, which the highest strict accuracy."""
    arms = [arm for arm in of_regime(analysis.arms, regime).values() if arm.arm not in ALONE]
    reward = max(arms, key=lambda arm: arm.gain.mean)
    strict = max(arms, key=lambda arm: arm.changes["strict"].mean)
    return (
        f"{REGIME_NAMES[regime].capitalize()}, the highest mean gain in reward is that of "
        f"`{reward.arm}` ({reward.gain.mean:+.4f}), in strict accuracy that of `{strict.arm}` "
        f"({strict.changes['strict'].mean:+.4f})."
    )


def pilot_sentence(analysis: Analysis) -> str:
    """What the pairs of the pilot say, each regime apart; empty without pairs."""
    sentences = []
    for regime, name in REGIME_NAMES.items():
        differences = [
            pair.difference
            for pair in analysis.pilot
            if pair.rate <= STABLE_RATE and pair.regime == regime
        ]
        if differences:
            sentences.append(
                f"{name.capitalize()}, at rates up to {STABLE_RATE:g}, the mean difference "
                f"`chunk` - `step` is {fmean(differences):+.5f} ({len(differences)} pairs, "
                f"`chunk` higher in {sum(difference > 0 for difference in differences)})."
            )
    if not sentences:
        return ""
    gains = [run.gain for run in analysis.others if run.name.startswith("pilot/")]
    return " ".join(
        [
            *sentences,
            f"The lowest gain of a run of the pilot is {min(gains):+.2f}: rates that break a model "
            "say little about chunks.",
        ]
    )


def summary(analysis: Analysis) -> str:
    """One paragraph of plain words, from the numbers alone."""
    missing = analysis.planned - analysis.done
    sentences = [f"{analysis.done} of {analysis.planned} planned runs are in."]
    if missing:
        sentences.append(f"{missing} are missing, so everything below is preliminary.")
    sentences += [_primary_sentence(analysis, comparison) for comparison in analysis.primary]
    if analysis.arms:
        sentences += [
            best_arms(analysis, regime)
            for regime in REGIME_NAMES
            if of_regime(analysis.arms, regime)
        ]
    if analysis.secondary:
        sentences.append(_found_sentence("secondary tests", analysis.secondary))
    if analysis.alone:
        best = max((arm for arm in analysis.arms if arm.arm in ALONE), key=lambda a: a.gain.mean)
        sentences.append(
            f"Of the chunks trained alone, chunk {best.arm.split()[-1]} gains most "
            f"({interval(best.gain)})."
        )
        sentences.append(_found_sentence("tests of one chunk against the rest", analysis.alone))
    edges = [
        f"`{row.arm}` {REGIME_NAMES[row.regime]} ({row.rate:g})"
        for row in analysis.sweep
        if row.at_edge
    ]
    if edges:
        sentences.append(
            f"The best learning rate is at the edge of the swept range for {', '.join(edges)}: "
            "a better one may lie beyond."
        )
    return " ".join(sentences)
