"""What a reward server and its clients say to each other: JSON, pictures as PNG in base64.

``POST /compute``::

    {"prompt": [str, ...], "image": [PNG in base64, ...], "metadata": [{...}, ...]}
    {"rewards": [number or null, ...], "extras": {name: [number or null, ...]}}

``metadata`` and ``extras`` may be absent, null is a score that could not be computed, and an answer
with ``error`` has no scores. Pictures are RGB with 8 bits, so a score is that of the saved picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...method.reward import RewardBatch
from ...prompts.example import Example, Prompt, examples_of
from ...settings.declared import shortened
from ..png import png_base64, png_size, unpack_pngs
from ..safe_json import parse_json

__all__ = ["Question", "parse_answer", "parse_question", "to_answer", "to_question"]

_MAX_SIDE = 8192
_MAX_PIXELS = 2**26
"""Of all pictures of a request: 64 of 1024 x 1024."""
_UNPACKED_PIXELS = 2**24
"""Of one picture, and of all that are unpacked at once: 192 MiB as float32."""
_MAX_EXTRAS = 64


@dataclass(frozen=True)
class Question:
    """Pictures to score, not unpacked yet."""

    examples: list[Example]
    files: list[str]
    """A PNG file in base64 for each example."""
    size: tuple[int, int]
    """Width and height that all their headers name."""

    def parts(self) -> list[slice]:
        """Places of the pictures that may be unpacked together."""
        step = _UNPACKED_PIXELS // (self.size[0] * self.size[1])
        return [slice(first, first + step) for first in range(0, len(self.files), step)]

    def images(self, part: slice) -> Tensor:
        """Unpack some: (b, H, W, 3), float32 in 0..1. Raises ValueError for damaged ones."""
        return unpack_pngs(self.files[part], self.size, part.start)


def to_question(images: Tensor, examples: Sequence[Prompt]) -> dict[str, Any]:
    """Build the body of a request for pictures (B, H, W, 3) in 0..1, finite."""
    examples = examples_of(examples)
    return {
        "prompt": [example.text for example in examples],
        "image": png_base64(images),
        "metadata": [dict(example.metadata) for example in examples],
    }


def parse_question(body: bytes | bytearray, max_batch: int) -> Question:
    """Read the body of a request from anybody, of at most ``max_batch`` pictures.

    Raises:
        ValueError: It is not as it must be; the message is for the sender.
    """
    try:
        data = parse_json(body)
    except ValueError as error:
        raise ValueError(f"the body must be JSON; {error}") from None
    if not isinstance(data, dict):
        raise ValueError("the body must be a JSON object")
    prompts, files = _list(data, "prompt", str), _list(data, "image", str)
    if data.get("metadata") is None:
        data["metadata"] = [{}] * len(prompts)
    metadata = _list(data, "metadata", dict)
    if not len(prompts) == len(files) == len(metadata):
        raise ValueError("prompt, image and metadata must have the same length")
    if not 1 <= len(files) <= max_batch:
        raise ValueError(f"there are {len(files)} pictures; 1 to {max_batch} are allowed")
    sizes = set()
    for index, file in enumerate(files):
        try:
            sizes.add(png_size(file))
        except ValueError as error:
            raise ValueError(f"image {index} is not PNG in base64: {error}") from error
    if len(sizes) > 1:
        raise ValueError(f"the pictures must have one size, got {sorted(sizes)[:4]}")
    ((width, height),) = sizes
    over = width * height * len(files) > _MAX_PIXELS or width * height > _UNPACKED_PIXELS
    if over or not 1 <= min(width, height) <= max(width, height) <= _MAX_SIDE:
        raise ValueError(
            f"{len(files)} pictures of {width} x {height}: a side may have {_MAX_SIDE} pixels, a "
            f"picture {_UNPACKED_PIXELS} and all pictures of a request {_MAX_PIXELS}"
        )
    return Question(list(map(Example, prompts, metadata)), files, (width, height))


def _list(data: dict[str, Any], key: str, kind: type) -> list[Any]:
    value = data.get(key)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        name = "strings" if kind is str else "objects"
        raise ValueError(f"{key} must be a list of {name}")
    return value


def to_answer(batch: RewardBatch) -> dict[str, Any]:
    """Build the body of an answer; null for NaN and infinity."""
    rewards, *extras = (
        [value if math.isfinite(value) else None for value in row.tolist()]
        for row in (batch.known, *batch.details.values())
    )
    return {"rewards": rewards, "extras": dict(zip(batch.details, extras, strict=True))}


def parse_answer(question: dict[str, Any], answer: object) -> RewardBatch:
    """Read the scores of a question's pictures; those without a finite number are not valid.

    Raises:
        ValueError: The answer is not as it must be, or says that it failed.
    """
    count = len(question["image"])
    if not isinstance(answer, dict):
        raise ValueError(f"the answer is not a JSON object: {shortened(answer)}")
    if answer.get("error"):
        raise ValueError(f"the server says {shortened(answer['error'])}")
    extras = answer.get("extras") or {}
    if not isinstance(extras, dict) or len(extras) > _MAX_EXTRAS:
        raise ValueError(f"extras must be an object with at most {_MAX_EXTRAS} names")
    for name in extras:
        if not (name.isprintable() and 1 <= len(name) <= 100):
            raise ValueError(f"extras {shortened(name)}: a name has 1 to 100 printable characters")
    rows = {name: _numbers(f"extras {name!r}", row, count) for name, row in extras.items()}
    values = _numbers("rewards", answer.get("rewards"), count)
    return RewardBatch(values, values.isfinite(), rows)


def _numbers(name: str, row: object, count: int) -> Tensor:
    if not isinstance(row, list) or len(row) != count:
        got = f"{len(row)} values" if isinstance(row, list) else shortened(row)
        raise ValueError(f"{name}: {count} numbers are needed, the answer has {got}")
    for value in row:
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"{name}: {shortened(value)} is not a number")
    # A whole number may be too large for float64.
    numbers = [math.nan if value is None or abs(value) > 3.4e38 else value for value in row]
    return torch.tensor(numbers, dtype=torch.float32)
