"""Plots of the race: a measure against units, mean over seeds with its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from chunk_grpo_core.watch.plot_style import PALETTE, open_figure, render, style_axes

from .arms import ARMS
from .outcomes import CLEAN_MARGIN, interval_of

__all__ = ["draw_measure"]

Runs = Mapping[int, Sequence[Mapping[str, Any]]]
_NAMES = {"reward": "mean reward on the held-out captions", "clean": "cleanliness"}
_LEVELS = {"reward": (0.75, 0.769, 0.80)}


def draw_measure(finals: Mapping[str, Runs], base: Mapping[str, float], name: str) -> Tensor:
    """One measure of all arms against units.

    Args:
        finals: Arm -> seed -> measurements, the base model's first.
        base: Measures of the base model.
        name: ``reward`` or ``clean``.
    """
    with open_figure(False, 8.4, 5.2, dpi=120) as (figure, theme):
        axes = figure.add_subplot()
        for index, arm in enumerate(ARMS):
            if arm not in finals:
                continue
            runs = list(finals[arm].values())
            length = min(map(len, runs))
            columns = [[run[k] for run in runs] for k in range(1, length)]
            x = [fmean(row["units"] for row in column) for column in columns]
            intervals = [interval_of([row[name] for row in column]) for column in columns]
            colour = PALETTE[index % len(PALETTE)]
            style = "-" if index < len(PALETTE) else "--"
            axes.plot(x, [i.mean for i in intervals], style, color=colour, lw=2, label=arm)
            if len(runs) > 1:
                low, high = [i.low for i in intervals], [i.high for i in intervals]
                axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
        for level in _LEVELS.get(name, (base[name] - CLEAN_MARGIN,)):
            axes.axhline(level, color=theme["text"], ls=":", lw=1)
        axes.axhline(base[name], color=theme["text"], lw=1)
        axes.set_xscale("log")
        ticks = [2_000, 4_000, 8_000, 16_000, 32_000, 64_000]
        axes.set_xticks(ticks, [f"{tick // 1000}k" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("units of work; line: base model; dotted: levels of the protocol")
        axes.set_ylabel(_NAMES[name])
        style_axes(axes, theme)
        axes.legend(fontsize=8, framealpha=0.6, ncols=2)
        return render(figure)
