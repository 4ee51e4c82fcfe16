"""Plots for people who would rather look than read: curves, chunks, training progress.

Every function returns one picture, float32 in 0..1, shape (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from torch import Tensor

from ..measure.evaluate import Evaluation, paired_gain, prompt_gains
from ..method.chunks import ChunkPlan
from ..method.dynamics import DynamicsCurve
from .history import reward_means
from .plot_style import GREEN, ORANGE, PALETTE, RED, open_figure, render, smoothed, style_axes

__all__ = ["plot_dynamics", "plot_paired_gains", "plot_plan", "plot_training"]

_FIRST = 3
"""Iterations whose mean is the start of a curve."""
_LABELLED = 40
"""Up to so many prompts are named in a plot."""
_CHANGE = {"l1": "relative L1 change", "l2": "relative L2 change", "cosine": "cosine distance"}


def plot_dynamics(
    curve: DynamicsCurve, plan: ChunkPlan | None = None, *, dark: bool = False
) -> Tensor:
    """Draw the change of each step with its spread, and the chunks of a plan behind it.

    Args:
        curve: What was measured.
        plan: Chunks to shade, covering all steps but the last; None draws the curve alone.
        dark: Light text on a dark background.
    """
    with open_figure(dark, 7.2, 3.8) as (figure, theme):
        axes = figure.add_subplot()
        steps = list(range(1, len(curve.mean) + 1))
        if plan:
            plan.check_covers(len(curve.mean) - 1)
            room = 1.35 if plan.weights else 1.2  # for one or two lines above the curve
            top = max(m + s for m, s in zip(curve.mean, curve.std, strict=True)) * room
            _shade(axes, plan, top, theme)
        low = [m - s for m, s in zip(curve.mean, curve.std, strict=True)]
        high = [m + s for m, s in zip(curve.mean, curve.std, strict=True)]
        axes.fill_between(steps, low, high, color=theme["line"], alpha=0.25, lw=0)
        axes.plot(steps, curve.mean, color=theme["line"], marker="o", ms=4)
        axes.set_xlim(0.5, len(steps) + 0.5)
        axes.axvline(len(steps) - 0.5, color=theme["text"], ls=":", lw=1)
        axes.set_xlabel("step, from noise to data (right of the dotted line: not trained)")
        axes.set_ylabel(_CHANGE[curve.distance])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(
            f"{curve.model or 'model'}, {curve.rule} eta {curve.eta:g}, {curve.prompts} prompts, "
            f"{curve.samples} samples; band: std over prompts",
            fontsize=9,
        )
        style_axes(axes, theme)
        return render(figure)


def plot_plan(plan: ChunkPlan, *, dark: bool = False, example: bool = False) -> Tensor:
    """Draw a plan alone, when no curve was measured.

    Args:
        plan: What to draw.
        dark: Light text on a dark background.
        example: Whether the training may have another number of steps.
    """
    with open_figure(dark, 7.2, 1.6) as (figure, theme):
        axes = figure.add_subplot()
        _shade(axes, plan, 1.0, theme)
        axes.set_xlim(0.5, plan.steps + 0.5)
        axes.set_yticks([])
        label = "trainable step, from noise to data; numbers: steps in the chunk"
        if example:
            label += f"\n(drawn for {plan.steps} steps; the training may have more or fewer)"
        axes.set_xlabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        style_axes(axes, theme)
        return render(figure)


def _shade(axes: Any, plan: ChunkPlan, top: float, theme: Mapping[str, str]) -> None:  # noqa: ANN401
    """Shade the chunks of a plan up to height ``top`` and write their sizes and weights."""
    for index, (start, end) in enumerate(plan.bounds()):
        colour = PALETTE[index % len(PALETTE)]
        axes.axvspan(start + 0.5, end + 0.5, color=colour, alpha=0.22, lw=0)
        label = f"{end - start}"
        if plan.weights:
            label += f"\nw {plan.weights[index]:.2f}"
        middle = (start + end + 1) / 2
        axes.text(middle, top * 0.98, label, ha="center", va="top", color=theme["text"])
    axes.set_ylim(0, top)


def plot_training(
    rows: Sequence[Mapping[str, Any]],
    *,
    held_out: Sequence[Mapping[str, Any]] = (),
    dark: bool = False,
) -> Tensor:
    """Draw reward, each of several rewards, clipping, KL and gradient norm over the iterations.

    Args:
        rows: Rows of metrics.jsonl, at least one.
        held_out: Rows of held_out.jsonl, drawn as points with their 95 % interval.
        dark: Light text on a dark background.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("there is nothing to plot: the run has no finished iteration")
    means = [reward_means(row) for row in rows]
    several = list(means[-1]) if len(means[-1]) > 1 else []
    layout = [["reward", "reward"], *([["each", "each"]] if several else []), ["clip", "kl"]]
    with open_figure(dark, 7.2, 7.6 if several else 5.6) as (figure, theme):
        panels = figure.subplot_mosaic(layout)
        if several:
            _draw_each(panels["each"], rows, several, theme)
        top, left, right = panels["reward"], panels["clip"], panels["kl"]
        x = [row["iteration"] + 1 for row in rows]
        mean = [_number(row.get("reward_mean")) for row in rows]
        std = [_number(row.get("reward_std")) for row in rows]
        low = [m - s for m, s in zip(mean, std, strict=True)]
        high = [m + s for m, s in zip(mean, std, strict=True)]
        line = theme["line"]
        top.fill_between(x, low, high, color=line, alpha=0.2, lw=0, label="std in group")
        top.plot(x, mean, color=line, lw=1, alpha=0.6, label="training")
        top.plot(x, smoothed(mean), color=line, lw=2.2, label="smoothed")
        if held_out:
            measured = [_number(row.get("mean")) for row in held_out]
            down = [m - _number(row.get("low")) for m, row in zip(measured, held_out, strict=True)]
            up = [_number(row.get("high")) - m for m, row in zip(measured, held_out, strict=True)]
            top.errorbar(
                [row["iterations"] for row in held_out],
                measured,
                yerr=[down, up],
                fmt="D--",
                color=RED,
                ms=6,
                capsize=4,
                label="held-out, 95 %",
            )
        top.set_ylabel("reward")
        _legend_above(top, theme)
        clips = [_numbers(row.get("clip_fraction")) for row in rows]
        chunks = min(map(len, clips))  # other algorithms have other columns
        for chunk in range(chunks):
            values = [of_row[chunk] for of_row in clips]
            colour = PALETTE[chunk % len(PALETTE)]
            left.plot(x, smoothed(values), color=colour, lw=1.4, label=f"{chunk + 1}")
        left.set_ylabel("clipped, by chunk")
        if not chunks:  # nothing to clip: what shows first that pictures spoil
            lengths = [_number(row.get("velocity_norm")) for row in rows]
            left.plot(x, lengths, color=PALETTE[0], lw=1.4)
            left.set_ylabel("length of v, of the base's")
        if 1 <= chunks <= 6:
            _legend_above(left, theme)
        name, label = "approx_kl", "KL to the sampler, per dim."
        if not any(name in row for row in rows):
            name, label = "reference_gap", "distance to the base"
        right.plot(x, [_number(row.get(name)) for row in rows], color=GREEN)
        right.set_ylabel(label, color=GREEN)
        norm = right.twinx()
        norm.plot(x, [_number(row.get("grad_norm")) for row in rows], color=ORANGE, lw=1.2)
        norm.set_ylabel("gradient norm", color=ORANGE)
        for axes in (top, left, right, norm):
            axes.set_xlabel("iteration")
            style_axes(axes, theme)
        for axes in (right, norm):
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        norm.grid(False)
        return render(figure)


def _draw_each(
    axes: Any,  # noqa: ANN401
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    theme: dict[str, str],
) -> None:
    """Draw several rewards on one scale: the change since the start, in deviations of a group."""
    for index, name in enumerate(names):
        means = [_number(reward_means(row).get(name)) for row in rows]
        spreads = [
            _number(row["rewards"][name].get("std")) for row in rows if name in reward_means(row)
        ]
        first = [mean for mean in means if isfinite(mean)][:_FIRST] or [0.0]
        spread = [one for one in spreads if isfinite(one) and one > 0][:_FIRST] or [1.0]
        start, unit = fmean(first), fmean(spread)
        changes = smoothed([(mean - start) / unit for mean in means])
        colour = PALETTE[index % len(PALETTE)]
        axes.plot([row["iteration"] + 1 for row in rows], changes, color=colour, label=name)
    axes.axhline(0, color=theme["text"], lw=1)
    axes.set_ylabel("each reward, change in std")
    axes.set_xlabel("iteration")
    style_axes(axes, theme)
    _legend_above(axes, theme)


def _legend_above(axes: Any, theme: Mapping[str, str]) -> None:  # noqa: ANN401
    """Name the series in one row above a panel, where it hides nothing."""
    axes.legend(
        fontsize=8,
        frameon=False,
        labelcolor=theme["text"],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(axes.get_legend_handles_labels()[0]),
        handlelength=1.2,
        columnspacing=1.0,
        borderpad=0.1,
    )


def plot_paired_gains(before: Evaluation, after: Evaluation, *, dark: bool = False) -> Tensor:
    """Draw the gain of every prompt, the least at the bottom, and the mean with its interval.

    Args:
        before: The base.
        after: What is compared with it, on the same prompts and noise; at least 2 prompts.
        dark: Light text on a dark background.

    Raises:
        ValueError: The two do not belong together.
    """
    gain, gains = paired_gain(before, after), prompt_gains(before, after)
    order = [index for index in gains.argsort().tolist() if gains[index].isfinite()]
    values = [float(gains[index]) for index in order]
    height = min(max(2.6, 1.0 + 0.2 * len(order)), 9.0)
    with open_figure(dark, 7.2, height) as (figure, theme):
        axes = figure.add_subplot()
        rows = range(len(order))
        colours = [GREEN if value > 0 else RED if value < 0 else theme["grid"] for value in values]
        axes.axvspan(gain.low, gain.high, color=theme["line"], alpha=0.25, lw=0)
        axes.axvline(gain.mean, color=theme["line"], lw=2)
        axes.axvline(0.0, color=theme["text"], ls=":", lw=1)
        axes.hlines(rows, 0.0, values, color=colours, lw=1.2)
        axes.scatter(values, rows, color=colours, s=18, zorder=3)
        labelled = len(order) <= _LABELLED
        axes.set_yticks(rows if labelled else [])
        if labelled:
            axes.set_yticklabels([_short(before.prompts[index]) for index in order])
        else:
            axes.set_ylabel(f"{len(order)} prompts, sorted")
        # Centred on the figure, not on the panel, which long prompts push to the right.
        text = {"fontsize": 9, "color": theme["text"]}
        figure.supxlabel("gain in reward, same prompt and noise; band: 95 % interval", **text)
        figure.suptitle(
            f"gain {gain.mean:+.{gain.digits}f} ({gain.interval()}), "
            f"{sum(value > 0 for value in values)} of {len(values)} prompts better",
            **text,
        )
        style_axes(axes, theme)
        return render(figure)


def _short(text: str, length: int = 48) -> str:
    return text if len(text) <= length else f"{text[: length - 3].rstrip()}..."


def _number(value: Any) -> float:
    """A number of a row; NaN for null, and for a column that is not there."""
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _numbers(values: Any) -> list[float]:
    return [_number(value) for value in values] if isinstance(values, (list, tuple)) else []
