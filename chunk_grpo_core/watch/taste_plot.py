"""The picture of a report on a taste: how it learns, and what it likes most and least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..rewards.taste.picks import Taste
from ..rewards.taste.report import Report
from .plot_style import GREEN, ORANGE, RED, open_figure, render, style_axes

__all__ = ["draw_report", "draw_taste"]

_MOST = 6


def draw_taste(taste: Taste, report: Report, *, dark: bool = False) -> Tensor:
    """Draw a report with the pictures of the taste; see :func:`draw_report`.

    Raises:
        FileNotFoundError: A picture went away since the report was made.
        ValueError: A file holds another picture than the one that was shown.
    """
    shown = {one.picture: one for pick in taste.counting() for one in pick.shown}
    wanted = {*report.most_liked[:_MOST], *report.least_liked[:_MOST]}
    return draw_report(report, {name: taste.picture(shown[name]) for name in wanted}, dark=dark)


def draw_report(report: Report, pictures: Mapping[str, Tensor], *, dark: bool = False) -> Tensor:
    """Draw a report.

    Args:
        report: What is known about the head.
        pictures: (H, W, 3) in 0..1 by hash; those of most and least liked that are there are shown.
        dark: On a dark background.

    Returns:
        (H, W, 3), float32 in 0..1.
    """
    with open_figure(dark, 10, 4.4) as (figure, theme):
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.35))
        for part in (left, right):
            part.set_facecolor(theme["face"])
        _curve(left.subplots(), report, theme)
        rows = right.subfigures(2, 1)
        for row, title, names in (
            (rows[0], "it likes most", report.most_liked),
            (rows[1], "it likes least", report.least_liked),
        ):
            row.set_facecolor(theme["face"])
            _pictures(row, title, [pictures[n] for n in names if n in pictures], theme)
        return render(figure)


def _curve(axes: Any, report: Report, theme: Mapping[str, str]) -> None:
    agreement = report.agreement
    axes.axhline(50, color=theme["text"], lw=0.8, ls=":")
    at_the_right = {"transform": axes.get_yaxis_transform(), "ha": "right"}
    axes.text(1, 50.6, "chance", color=theme["text"], fontsize=8, **at_the_right)
    if report.own.clicks:
        axes.axhline(100 * report.own.agreed / report.own.clicks, color=ORANGE, lw=1, ls="--")
    if report.curve:
        clicks, shares = zip(*report.curve, strict=True)
        axes.plot(clicks, [100 * share for share in shares], color=theme["line"], marker="o", ms=4)
    if agreement.clicks and not math.isnan(agreement.share):
        share, low, high = (100 * one for one in (agreement.share, agreement.low, agreement.high))
        colour = {"better than chance": GREEN, "no sign": RED}.get(report.verdict, theme["text"])
        axes.errorbar(
            [agreement.clicks], [share], [[share - low], [high - share]],
            color=colour, marker="s", capsize=4,
        )  # fmt: skip
        axes.set_xlim(0, 1.1 * agreement.clicks)
    axes.set_ylim(0, 102)
    axes.set_xlabel("clicks")
    axes.set_ylabel("left-out clicks it agrees with, %")
    axes.set_title(f"{report.verdict[0].upper()}{report.verdict[1:]}", fontsize=10)
    style_axes(axes, dict(theme))


def _pictures(
    figure: Any, title: str, pictures: Sequence[Tensor], theme: Mapping[str, str]
) -> None:
    figure.suptitle(title, color=theme["text"], fontsize=9)
    all_axes = figure.subplots(1, _MOST)
    for place, axes in enumerate(all_axes):
        axes.axis("off")
        if place < len(pictures):
            axes.imshow(pictures[place].clamp(0, 1).numpy())
