"""From pictures to what image towers take: 8 bits, size, crop or margin, mean and spread.

Rewards judge what a user would save, so pictures are rounded to 8 bits first: a tensor and the PNG
made of it get the same score. The three ways to a square differ by more than rounding, and every
reward states its own.

Legend: B pictures, H W picture size, S side of the square.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..optional import require

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "MAX_ASPECT",
    "Square",
    "as_colour",
    "cropped",
    "letterboxed",
    "normalised",
    "to_levels",
    "to_pil",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

MAX_ASPECT = 200
"""Longest side over shortest side that is still judged."""

Square = Callable[[Tensor, int], Tensor]
"""Levels (H, W, 3) and S -> (3, S, S) in 0..1, not normalised."""


def as_colour(images: Tensor, name: str = "pictures") -> Tensor:
    """Pictures of grey, colour or colour with opacity -> pictures of colour.

    Transparent pictures are laid on white, as a page shows them.

    Args:
        images: (..., H, W, C) in 0..1, or a little beyond, C being 1, 3 or 4.
        name: What to call them in messages.

    Returns:
        (..., H, W, 3), of the type of ``images``.

    Raises:
        ValueError: Another number of channels, no picture at all, NaN or infinity, or another scale
            (0 to 255).
    """
    channels = images.shape[-1] if images.ndim >= 3 else 0
    if channels not in (1, 3, 4) or images.numel() == 0:
        raise ValueError(
            f"{name} must have the shape (number, height, width, 1, 3 or 4), with at least one "
            f"pixel, not {tuple(images.shape)}"
        )
    if not bool(images.isfinite().all()):
        raise ValueError(
            f"{name} holds NaN or infinity: the model that made it, or its LoRA, is damaged"
        )
    low, high = float(images.min()), float(images.max())
    if low < -1.0 or high > 2.0:
        raise ValueError(f"{name} holds values from {low:g} to {high:g}; they must be in 0 to 1")
    if channels == 1:
        return images.expand(*images.shape[:-1], 3)
    if channels == 3:
        return images
    colour, opacity = images[..., :3], images[..., 3:]
    return torch.where(opacity == 1.0, colour, colour * opacity + (1.0 - opacity))


def to_levels(images: Tensor) -> Tensor:
    """Round pictures (B, H, W, 3) in 0..1 to uint8 as saving them does; values outside are cut."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(images: Tensor) -> list[Any]:
    """Pictures (B, H, W, 3) in 0..1 -> B PIL images."""
    image = require("PIL.Image", "To draw pictures")
    levels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return [image.fromarray(level) for level in levels]


def cropped(rule: Literal["floor", "round"]) -> Square:
    """Shortest side to S (bicubic, on 8 bits), then the square in the middle.

    Args:
        rule: Where an odd margin puts the square. ``"floor"``: transformers. ``"round"``:
            torchvision and OpenAI's CLIP, half to even. The two differ by one pixel.
    """

    def square(levels: Tensor, size: int) -> Tensor:
        image = require("PIL.Image", "To resize pictures")
        height, width = _checked_size(levels)
        short = min(height, width)
        # The longer side is cut, not rounded, as in both libraries.
        new = tuple(size if side == short else size * side // short for side in (width, height))
        resized = image.fromarray(levels.numpy()).resize(new, image.BICUBIC)
        left, top = (_margin(side - size, rule) for side in new)
        cut = torch.from_numpy(_array(resized.crop((left, top, left + size, top + size))))
        return cut.permute(2, 0, 1).float() / 255.0

    return square


def letterboxed(levels: Tensor, size: int) -> Tensor:
    """Longest side to S (bicubic with antialiasing, in floating point), black margins.

    The resized picture may leave 0..1 a little, as in HPSv2's own preprocessing.
    """
    height, width = _checked_size(levels)
    scale = size / max(height, width)
    new = (max(1, round(height * scale)), max(1, round(width * scale)))
    picture = levels.permute(2, 0, 1).contiguous().float()[None] / 255.0
    if new != (height, width):
        picture = functional.interpolate(picture, new, mode="bicubic", antialias=True)
    down, across = size - new[0], size - new[1]
    margins = (across // 2, across - across // 2, down // 2, down - down // 2)
    return functional.pad(picture, margins)[0]


def normalised(
    picture: Tensor,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> Tensor:
    """Subtract the mean and divide by the spread of each channel of (..., 3, S, S)."""
    return (picture - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _margin(left_over: int, rule: Literal["floor", "round"]) -> int:
    return left_over // 2 if rule == "floor" else round(left_over / 2)


def _array(image: Any) -> Any:
    return require("numpy", "To resize pictures").array(image)


def _checked_size(levels: Tensor) -> tuple[int, int]:
    height, width = levels.shape[:2]
    if min(height, width) == 0 or max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"a picture has {width} x {height} pixels; the longer side may be at most "
            f"{MAX_ASPECT} times the shorter"
        )
    return height, width
