"""Pictures as arrays: grids of samples, and the listener that keeps them.

Legend: B pictures, H W picture size. Arrays are uint8, shape (H, W, 3).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..disk.atomic import write_whole
from ..optional import require
from ..rewards.pixels import to_pil
from ..train.events import Event, RolloutEnd

__all__ = ["SampleWriter", "best_first", "enlargement", "image_grid", "save_png", "write_pictures"]

_GAP = 2
_LONGEST_SIDE = 4096
"""Pixels of a grid at most: a hundred large pictures in full size would be of no use to anybody."""
_TEXT_HEIGHT = 13


def best_first(rewards: Tensor) -> Tensor:
    """Indices of B rewards from the best to the worst, equal ones in order; NaN comes last."""
    return rewards.nan_to_num(-math.inf).argsort(descending=True, stable=True)


def enlargement(images: Tensor, pixels: int = 128) -> int:
    """Whole-number scale at which pictures (B, H, W, 3) are about ``pixels`` high, at least 1."""
    return max(1, pixels // images.shape[1])


def image_grid(
    images: Tensor,
    *,
    columns: int | None = None,
    scale: int = 1,
    captions: Sequence[str] | None = None,
) -> Tensor:
    """Lay pictures out in rows. Pictures that would make a grid of more than 4096 pixels are
    drawn smaller.

    Args:
        images: (B, H, W, 3) in 0..1.
        columns: Pictures in a row; about the square root of B when None.
        scale: Whole-number enlargement (nearest neighbour).
        captions: B texts to write below the pictures, on two lines at most; longer ones are cut.

    Returns:
        One picture, float32 in 0..1, shape (height, width, 3).
    """
    image, draw = require("PIL.Image", "To draw pictures"), require("PIL.ImageDraw", "To draw text")
    numpy = require("numpy", "To draw pictures")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    fit = _LONGEST_SIDE / (max(columns * images.shape[2], rows * images.shape[1]) * scale)
    factor = scale * min(fit, 1.0)
    size = (round(images.shape[2] * factor), round(images.shape[1] * factor))
    resampling = image.NEAREST if factor == scale else image.LANCZOS
    width, height = size[0] + _GAP, size[1] + _GAP
    lines = _wrapped(captions or [], draw.Draw(image.new("RGB", (1, 1))).textlength, width - _GAP)
    height += _TEXT_HEIGHT * max(map(len, lines), default=0)
    sheet = image.new("RGB", (columns * width + _GAP, rows * height + _GAP), (24, 24, 27))
    pen = draw.Draw(sheet)
    for index, picture in enumerate(to_pil(images)):
        x, y = _GAP + index % columns * width, _GAP + index // columns * height
        sheet.paste(picture.resize(size, resampling, reducing_gap=2.0), (x, y))
        if captions:
            text = "\n".join(lines[index])
            pen.text((x + 1, y + size[1]), text, fill=(228, 228, 231))
    return torch.from_numpy(numpy.array(sheet)).float() / 255.0


def _wrapped(texts: Sequence[str], length: Callable[[str], float], width: float) -> list[list[str]]:
    """Break each text into at most two lines that fit; what is left over becomes "..."."""
    return [_broken(text.split(), length, width) for text in texts]


def _broken(words: list[str], length: Callable[[str], float], width: float) -> list[str]:
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if length(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) == 1:
            lines.append(word)
        else:
            lines[-1] += " ..."
            break
    return lines


def save_png(picture: Tensor, path: str | Path) -> Path:
    """Write one picture (H, W, 3) in 0..1 as PNG, never half; its folder is made if needed.

    Raises:
        CannotWrite: The disk is full, or something else is in the way.
    """
    path, file = Path(path), io.BytesIO()
    to_pil(picture[None])[0].save(file, "PNG")
    write_whole(path, file.getvalue())
    return path


class SampleWriter:
    """Keep one sampled group of every few iterations, best sample first, with its rewards."""

    def __init__(self, folder: str | Path, every: int = 5) -> None:
        """Write to ``folder`` after every ``every``-th iteration, the first one included."""
        self.folder, self.every = Path(folder), every
        self._written = -1

    def __call__(self, event: Event) -> None:
        """Listen to one event."""
        if not isinstance(event, RolloutEnd) or event.iteration % self.every:
            return
        if event.iteration == self._written:
            return
        self._written = event.iteration
        order = best_first(event.rewards)
        grid = image_grid(
            event.images[order],
            scale=enlargement(event.images),
            captions=[f"{reward:.3f}" for reward in event.rewards[order].tolist()],
        )
        save_png(grid, self.folder / f"iteration_{event.iteration + 1:05d}.png")


def write_pictures(
    pictures: Sequence[Tensor], prompts: Sequence[str], folder: Path, seed: int
) -> list[Path]:
    """Write PNG files named by prompt, seed and number: ``a_red_fox_20000_0.png``."""
    files = []
    for index, (group, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        title = re.sub(r"\W+", "_", prompt).strip("_")[:60] or "prompt"
        for number, picture in enumerate(group):
            files.append(
                save_png(picture, folder / f"{title}_{(seed + index) % 2**64}_{number}.png")
            )
    return files
