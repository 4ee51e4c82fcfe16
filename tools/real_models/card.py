"""Thumbnails that tell the models apart: what is trained, and how, above the graph."""

from __future__ import annotations

import colorsys
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from .models import ModelExample

__all__ = ["card"]

SIZE, EDGE, BAND = (1280, 720), 40, 250
_FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")


def card(graph: Image.Image, model: ModelExample, reward: str, hue: float) -> Image.Image:
    """A card of an example.

    Args:
        graph: Picture of the whole graph.
        model: What is trained.
        reward: What it is trained on, in words.
        hue: Of the band, 0 to 1.
    """
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.3, 0.45))
    picture = Image.new("RGB", SIZE, (24, 24, 26))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, SIZE[0], BAND), fill=(red, green, blue))
    draw.text((EDGE, 34), model.title, fill="white", font=_font("DejaVuSans-Bold", 76))
    guided = f"cfg {model.cfg:g}" if model.cfg > 1 else "no cfg"
    steps = f"{model.steps} steps, {model.sampler or 'euler'}, {guided}"
    draw.text((EDGE, 134), reward, fill="white", font=_font("DejaVuSans", 40))
    draw.text((EDGE, 190), steps, fill=(225, 225, 225), font=_font("DejaVuSans", 32))
    room = (SIZE[0] - 2 * EDGE, SIZE[1] - BAND - 2 * EDGE)
    small = graph.copy()
    small.thumbnail(room)
    left = (SIZE[0] - small.width) // 2
    picture.paste(small, (left, BAND + EDGE + (room[1] - small.height) // 2))
    return picture


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_FONTS / f"{name}.ttf"), size)
