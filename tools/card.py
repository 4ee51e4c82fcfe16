"""Thumbnails that tell the templates apart: what is shown, in words, above pictures of it."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

__all__ = ["card"]

SIZE, EDGE, BAND = (1280, 720), 40, 250
_FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


def card(
    title: str, lines: tuple[str, str], pictures: Sequence[Image.Image], hue: float
) -> Image.Image:
    """A card of an example.

    Args:
        title: What it is about, in a few words.
        lines: Two lines below the title, the first one larger.
        pictures: Side by side below them; the last ones get the height they can use, the first one
            the width that they leave.
        hue: Of the band, 0 to 1.
    """
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.3, 0.45))
    whole = Image.new("RGB", SIZE, (24, 24, 26))
    draw = ImageDraw.Draw(whole)
    draw.rectangle((0, 0, SIZE[0], BAND), fill=(red, green, blue))
    draw.text((EDGE, 34), title, fill="white", font=_font("DejaVuSans-Bold", 76))
    draw.text((EDGE, 134), lines[0], fill="white", font=_font("DejaVuSans", 40))
    draw.text((EDGE, 190), lines[1], fill=(225, 225, 225), font=_font("DejaVuSans", 32))
    height = SIZE[1] - BAND - 2 * EDGE
    small: list[Image.Image] = []
    width = SIZE[0] - EDGE
    for index in reversed(range(len(pictures))):
        most = width - EDGE if index == 0 else (SIZE[0] - 2 * EDGE) * 2 // 3
        small.insert(0, _fit(pictures[index], most, height))
        width -= small[0].width + EDGE
    left = EDGE + max(width - EDGE, 0) // 2
    for picture in small:
        whole.paste(picture, (left, BAND + EDGE + (height - picture.height) // 2))
        left += picture.width + EDGE
    return whole


def _fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / picture.width, height / picture.height)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_FONTS / f"{name}.ttf"), size)
