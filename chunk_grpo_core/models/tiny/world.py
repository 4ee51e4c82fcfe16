"""The tiny world: 480 scenes, their captions, and a fixed split into train and held out.

A caption reads ``"{a|two} {small|large} {colour} {shape(s)} on a {colour} background"``.

Legend: B scenes; the 5 attributes are always in the order of :data:`ATTRIBUTES`.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from ...settings.declared import shortened

__all__ = [
    "ATTRIBUTES",
    "EXAMPLE",
    "HELD_OUT",
    "PALETTE",
    "SCENES",
    "TRAIN",
    "Scene",
    "caption",
    "indices_of",
    "parse",
    "words_of",
]

#: Colour name -> red, green, blue in 0..255.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 40),
    "white": (242, 242, 242),
    "black": (18, 18, 18),
}
#: Attribute -> its values. The position of a value is its index everywhere in this package.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "count": ("a", "two"),
    "size": ("small", "large"),
    "colour": tuple(PALETTE),
    "shape": ("circle", "square", "triangle", "cross"),
    "background": tuple(PALETTE),
}
EXAMPLE = "two small red circles on a blue background"
_HELD_OUT_COUNT = 96
_SPLIT_SEED = 0


@dataclass(frozen=True, order=True)
class Scene:
    """What a picture of this world shows.

    Raises:
        ValueError: A value is unknown, or object and background have the same colour.
    """

    count: str
    size: str
    colour: str
    shape: str
    background: str

    def __post_init__(self) -> None:
        for (name, values), value in zip(ATTRIBUTES.items(), astuple(self), strict=True):
            if value not in values:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(values)}")
        if self.colour == self.background:
            raise ValueError(f"object and background are both {self.colour}; choose two colours")


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, punctuation dropped."""
    return re.findall(r"[^\W_]+", text.lower())


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def caption(scene: Scene) -> str:
    """The caption of a scene, for example ``"a large red cross on a white background"``."""
    shape = scene.shape if scene.count == "a" else _plural(scene.shape)
    return f"{scene.count} {scene.size} {scene.colour} {shape} on a {scene.background} background"


def parse(text: str) -> Scene:
    """The scene a caption describes (case and punctuation do not matter).

    Raises:
        ValueError: The text is not a caption of this world; the message shows a valid one.
    """
    scene = _BY_WORDS.get(tuple(words_of(text)))
    if scene is None:
        raise ValueError(
            f"{shortened(text)} is not a caption of the tiny world. A valid one: {EXAMPLE!r} "
            f"(colours: {', '.join(PALETTE)}; shapes: {', '.join(ATTRIBUTES['shape'])}; "
            "object and background differ in colour)"
        )
    return scene


def indices_of(scenes: Sequence[Scene]) -> Tensor:
    """Attribute indices of B scenes, int64, shape (B, 5)."""
    rows = [
        [values.index(v) for values, v in zip(ATTRIBUTES.values(), astuple(s), strict=True)]
        for s in scenes
    ]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, len(ATTRIBUTES))


def _split(scenes: Sequence[Scene]) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    mixed = list(scenes)
    random.Random(_SPLIT_SEED).shuffle(mixed)
    return tuple(mixed[_HELD_OUT_COUNT:]), tuple(mixed[:_HELD_OUT_COUNT])


#: All 480 scenes.
SCENES: tuple[Scene, ...] = tuple(
    Scene(*values) for values in itertools.product(*ATTRIBUTES.values()) if values[2] != values[4]
)
#: 384 scenes for training and 96 that neither the base model nor a reward run ever trains on.
TRAIN, HELD_OUT = _split(SCENES)
_BY_WORDS = {tuple(words_of(caption(scene))): scene for scene in SCENES}
