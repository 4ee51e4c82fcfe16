"""Figures of the report, in the style of the library's own plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from torch import Tensor

from chunk_grpo_core.watch.plot_style import (
    GREEN,
    PALETTE,
    RED,
    open_figure,
    render,
    smoothed,
    style_axes,
)

from .analysis import Analysis, Study
from .design import ALONE, OTHERS, PAPER, PRIMARY, REGIMES
from .stats import Estimate
from .words import REGIME_NAMES

__all__ = ["FIGURES"]

_BLUE = PALETTE[5]
_COLOURS = {"step": _BLUE, "chunk": RED}


def _row(axes: Any, y: float, value: Estimate, colour: str, *, is_filled: bool = True) -> None:
    """The mean with its interval, and the single runs below."""
    axes.plot(value.values, [y + 0.26] * len(value.values), "o", ms=3, color=colour, alpha=0.5)
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [y, y], color=colour, lw=2)
    face = colour if is_filled else "white"
    axes.plot([value.mean], [y], "D", ms=6, color=colour, markerfacecolor=face)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    """Label the rows, the first one on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _height(rows: int) -> float:
    """Inches that a panel with this many rows needs."""
    return 1.2 + 0.42 * rows


def draw_gains(study: Study, analysis: Analysis) -> Tensor | None:
    """Gain of every arm over the base model, by regime."""
    arms = {(arm.arm, arm.regime): arm for arm in analysis.arms if arm.arm not in ALONE}
    if not arms:
        return None
    names = [name for name in (*PRIMARY, *OTHERS) if any(key[0] == name for key in arms)]
    with open_figure(False, 8.4, _height(len(names)), dpi=120) as (figure, theme):
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, regime in zip(panels, REGIMES, strict=True):
            for y, name in enumerate(names):
                if (name, regime) in arms:
                    _row(axes, y, arms[name, regime].gain, _COLOURS.get(name, GREEN))
            if ("step", regime) in arms:
                mean = arms["step", regime].gain.mean
                axes.axvline(mean, color=_BLUE, ls=":", lw=1.2)
            axes.axvline(0, color=theme["text"], lw=1)
            _name_rows(axes, names)
            axes.set_title(REGIME_NAMES[regime], fontsize=10)
            axes.set_xlabel("gain in held-out reward; dotted: step")
            style_axes(axes, theme)
        return render(figure)


def draw_differences(study: Study, analysis: Analysis) -> Tensor | None:
    """Paired differences of every arm to step, by regime; filled where found."""
    tests = {
        (c.arm, c.regime): c
        for c in (*analysis.primary, *analysis.secondary)
        if c.against == "step"
    }
    if not tests:
        return None
    names = [name for name in ("chunk", *OTHERS) if any(key[0] == name for key in tests)]
    with open_figure(False, 8.4, _height(len(names)), dpi=120) as (figure, theme):
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, regime in zip(panels, REGIMES, strict=True):
            for y, name in enumerate(names):
                test = tests.get((name, regime))
                if test:
                    colour = _COLOURS.get(name, GREEN)
                    _row(axes, y, test.difference, colour, is_filled=test.is_found)
            axes.axvline(0, color=theme["text"], lw=1)
            _name_rows(axes, names)
            axes.set_title(REGIME_NAMES[regime], fontsize=10)
            axes.set_xlabel("difference to step, same seed; filled: found")
            style_axes(axes, theme)
        return render(figure)


def draw_alone(study: Study, analysis: Analysis) -> Tensor | None:
    """Gain with one chunk trained."""
    arms = {arm.arm: arm for arm in analysis.arms if arm.arm in ALONE}
    if not arms:
        return None
    has_difference = {c.arm: c.is_found for c in analysis.alone}
    labels = {name: f"steps {4 * k + 1}-{4 * k + 4}" for k, name in enumerate(ALONE)}
    with open_figure(False, 6.0, _height(len(arms)), dpi=120) as (figure, theme):
        axes = figure.add_subplot()
        for y, (name, arm) in enumerate(arms.items()):
            _row(axes, y, arm.gain, PALETTE[y], is_filled=has_difference.get(name, False))
        mean = fmean(arm.gain.mean for arm in arms.values())
        axes.axvline(mean, color=theme["text"], ls=":", lw=1.2)
        axes.axvline(0, color=theme["text"], lw=1)
        _name_rows(axes, [labels[name] for name in arms])
        axes.set_xlabel(
            "gain in held-out reward; dotted: mean; filled: differs from the other three"
        )
        style_axes(axes, theme)
        return render(figure)


def draw_learning(study: Study, analysis: Analysis) -> Tensor | None:
    """Reward of the rollouts of step and chunk: mean over runs, smoothed, with its spread."""
    arms = {(arm.arm, arm.regime): arm for arm in analysis.arms if arm.arm in PRIMARY}
    if not arms:
        return None
    with open_figure(False, 8.4, 3.4, dpi=120) as (figure, theme):
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes, (regime, epochs) in zip(panels, REGIMES.items(), strict=True):
            for name in PRIMARY:
                if (name, regime) not in arms:
                    continue
                runs = [study.runs[run] for run in arms[name, regime].runs]
                lines = [smoothed([row["reward_mean"] for row in run["rows"]]) for run in runs]
                x = [epochs * rollout for rollout in range(len(lines[0]))]
                mean = [fmean(values) for values in zip(*lines, strict=True)]
                colour = _COLOURS[name]
                if len(lines) > 1:
                    spread = [stdev(values) for values in zip(*lines, strict=True)]
                    low = [m - s for m, s in zip(mean, spread, strict=True)]
                    high = [m + s for m, s in zip(mean, spread, strict=True)]
                    axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
                axes.plot(x, mean, color=colour, lw=2, label=f"{name}, {len(runs)} runs")
            axes.set_title(REGIME_NAMES[regime], fontsize=10)
            axes.set_xlabel("updates done")
            style_axes(axes, theme)
            if axes.lines:
                axes.legend(fontsize=8, framealpha=0.6)
        panels[0].set_ylabel("training reward, smoothed; band: std")
        return render(figure)


def draw_curves(study: Study, analysis: Analysis) -> Tensor | None:
    """Relative-L1 curves of the base model under every rule."""
    with open_figure(False, 8.4, 5.0, dpi=120) as (figure, theme):
        panels = figure.subplots(2, 2, sharex=True).flatten()
        for axes, (rule, curve) in zip(panels, study.curves.items(), strict=True):
            steps = range(1, len(curve["mean"]) + 1)
            pairs = list(zip(curve["mean"], curve["std"], strict=True))
            low, high = [m - s for m, s in pairs], [m + s for m, s in pairs]
            axes.fill_between(steps, low, high, color=theme["line"], alpha=0.25, lw=0)
            axes.plot(steps, curve["mean"], color=theme["line"], marker="o", ms=3.5)
            for chunk in range(1, len(PAPER) + 1):
                axes.axvline(sum(PAPER[:chunk]) + 0.5, color=theme["text"], ls=":", lw=1)
            name = "ODE" if rule == "ode" else f"{rule}, eta {curve['eta']:g}"
            axes.set_title(name, fontsize=10)
            axes.set_ylim(bottom=0)
            axes.xaxis.get_major_locator().set_params(integer=True)
            style_axes(axes, theme)
        for axes in panels[2:]:
            axes.set_xlabel("step, from noise to data; dotted: cuts of 2, 3, 4, 7")
            style_axes(axes, theme)
        for axes in panels[::2]:
            axes.set_ylabel("relative L1 change")
            style_axes(axes, theme)
        return render(figure)


FIGURES: dict[str, tuple[str, Callable[[Study, Analysis], Tensor | None]]] = {
    "gains": ("Gain of each arm, single runs as dots", draw_gains),
    "differences": ("Differences to step with 95 % intervals", draw_differences),
    "alone": ("Gain with one chunk trained alone", draw_alone),
    "learning": ("Training reward of step and chunk", draw_learning),
    "curves": ("Relative L1 of each rule; band: std over prompts", draw_curves),
}
"""File name -> what it shows, and what draws it (None without results)."""
