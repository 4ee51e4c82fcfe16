"""How all plots look: figures without matplotlib's global state, colours, smoothing.

Colours are the Okabe-Ito palette, which colour-blind people can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..optional import require

__all__ = [
    "GREEN",
    "ORANGE",
    "PALETTE",
    "RED",
    "open_figure",
    "render",
    "smoothed",
    "style_axes",
]

ORANGE, GREEN, RED = "#E69F00", "#009E73", "#D55E00"
_UNIT = 120
_NODE_DPI = 160
"""Text of 8 points can be read where a node shows the plot at half its size."""
PALETTE = ("#56B4E9", ORANGE, GREEN, "#CC79A7", "#F0E442", "#0072B2")
_THEMES = {
    False: {"face": "#ffffff", "text": "#18181b", "grid": "#d4d4d8", "line": "#0072B2"},
    True: {"face": "#18181b", "text": "#f4f4f5", "grid": "#3f3f46", "line": "#56B4E9"},
}


@contextmanager
def open_figure(
    dark: bool, width: float, height: float, dpi: int = _NODE_DPI
) -> Iterator[tuple[Any, dict[str, str]]]:
    """Give an empty figure and its colours: ``face``, ``text``, ``grid``, ``line``.

    Args:
        dark: Light text on a dark background.
        width: In units of 120 pixels.
        height: In the same units.
        dpi: Pixels of 72 points of text: 120 where the plot is shown at its full size.
    """
    figure_module = require("matplotlib.figure", "To draw plots")
    theme = _THEMES[dark]
    figure = figure_module.Figure(
        figsize=(width * _UNIT / dpi, height * _UNIT / dpi),
        dpi=dpi,
        facecolor=theme["face"],
        layout="constrained",
    )
    yield figure, theme


def style_axes(axes: Any, theme: dict[str, str]) -> None:  # noqa: ANN401 - matplotlib Axes
    """Colour a finished panel; axis labels that were given a colour keep it."""
    axes.set_facecolor(theme["face"])
    axes.grid(color=theme["grid"], lw=0.6, alpha=0.7)
    axes.tick_params(colors=theme["text"], labelsize=8)
    axes.title.set_color(theme["text"])
    axes.yaxis.get_offset_text().set_color(theme["text"])
    axes.yaxis.get_offset_text().set_fontsize(8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        if label.get_color() == "black":
            label.set_color(theme["text"])
        label.set_fontsize(9)
    for spine in axes.spines.values():
        spine.set_color(theme["grid"])


def render(figure: Any) -> Tensor:  # noqa: ANN401 - matplotlib Figure
    """Draw a figure: float32 in 0..1, shape (H, W, 3)."""
    numpy = require("numpy", "To draw plots")
    canvas = require("matplotlib.backends.backend_agg", "To draw plots").FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(numpy.array(canvas.buffer_rgba())[..., :3]).float() / 255.0


def smoothed(values: Sequence[float], weight: float = 0.7) -> list[float]:
    """Exponential moving average that skips NaN."""
    out: list[float] = []
    for value in values:
        last = out[-1] if out else value
        if last != last:
            last = value
        out.append(last if value != value else weight * last + (1 - weight) * value)
    return out
