"""What a reward server and its clients say to each other: JSON, pictures as PNG in base64.

``POST /compute``::

    {"prompt": [str, ...], "image": [PNG in base64, ...], "metadata": [{...}, ...]}
    {"rewards": [number or null, ...], "extras": {name: [number or null, ...]}}

``metadata`` and ``extras`` may be absent, null is a score that could not be computed, and an answer
with ``error`` has no scores. Pictures are RGB with 8 bits, so a score is that of the saved picture.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...method.reward import RewardBatch
from ...optional import require
from ...prompts.example import Example, Prompt, examples_of
from ..pixels import to_pil

__all__ = ["Question", "parse_answer", "parse_question", "png_base64", "to_answer", "to_question"]

_MAX_SIDE = 8192
_MAX_PIXELS = 2**26
"""Of all pictures of a request: 64 of 1024 x 1024, 768 MiB as float32."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """B pictures to score."""

    images: Tensor
    """(B, H, W, 3), float32 in 0..1, whole multiples of 1 / 255."""
    examples: list[Example]
    """B prompts with their metadata."""


def png_base64(images: Tensor) -> list[str]:
    """Pictures (B, H, W, 3) in 0..1, finite -> B PNG files in base64."""
    texts = []
    for picture in to_pil(images):
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        texts.append(base64.b64encode(file.getvalue()).decode("ascii"))
    return texts


def to_question(images: Tensor, examples: Sequence[Prompt]) -> dict[str, Any]:
    """Build the body of a request; see :class:`Question`."""
    examples = examples_of(examples)
    return {
        "prompt": [example.text for example in examples],
        "image": png_base64(images),
        "metadata": [dict(example.metadata) for example in examples],
    }


def parse_question(body: bytes, max_batch: int) -> Question:
    """Read the body of a request from anybody.

    Args:
        body: JSON.
        max_batch: Most pictures allowed.

    Raises:
        ValueError: It is not as it must be; the message is for the sender.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body must be JSON") from None
    if not isinstance(data, dict):
        raise ValueError("the body must be a JSON object")
    prompts, texts = _list(data, "prompt", str), _list(data, "image", str)
    has_metadata = data.get("metadata") is not None
    metadata = _list(data, "metadata", dict) if has_metadata else [{}] * len(prompts)
    if not len(prompts) == len(texts) == len(metadata):
        raise ValueError("prompt, image and metadata must have the same length")
    if not 1 <= len(texts) <= max_batch:
        raise ValueError(f"there are {len(texts)} pictures; 1 to {max_batch} are allowed")
    examples = list(map(Example, prompts, metadata))
    return Question(images=_pictures(texts), examples=examples)


def to_answer(batch: RewardBatch) -> dict[str, Any]:
    """Build the body of an answer."""
    return {
        "rewards": _plain(batch.known),
        "extras": {name: _plain(values) for name, values in batch.details.items()},
    }


def parse_answer(answer: object, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Read the scores of ``count`` pictures from an answer of any server.

    Returns:
        Rewards and extras, each float32 of shape (count,), NaN where there is no finite number.

    Raises:
        ValueError: The answer is not as it must be, or says that it failed.
    """
    if not isinstance(answer, dict):
        raise ValueError("the answer is not a JSON object")
    if answer.get("error"):
        raise ValueError(f"the server says {ascii(answer['error'])[:200]}")
    extras = answer.get("extras") or {}
    if not isinstance(extras, dict):
        raise ValueError("extras are not an object")
    return (
        _numbers("rewards", answer.get("rewards"), count),
        {name: _numbers(f"extras {name[:40]!a}", row, count) for name, row in extras.items()},
    )


def _numbers(name: str, row: object, count: int) -> Tensor:
    if not isinstance(row, list) or len(row) != count:
        got = f"{len(row)} values" if isinstance(row, list) else type(row).__name__
        raise ValueError(f"{name}: {count} numbers are needed, the answer has {got}")
    for value in row:
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"{name}: {ascii(value)[:40]} is not a number")
    numbers = torch.tensor([_float(value) for value in row], dtype=torch.float32)
    return torch.where(numbers.isfinite(), numbers, torch.nan)


def _float(value: int | float | None) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:  # a whole number beyond float64
        return math.inf


def _plain(values: Tensor) -> list[float | None]:
    """Numbers for JSON, None for NaN and infinity."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _list(data: dict[str, Any], key: str, kind: type) -> list[Any]:
    value = data.get(key)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        name = "strings" if kind is str else "objects"
        raise ValueError(f"{key} must be a list of {name}")
    return value


def _pictures(texts: list[str]) -> Tensor:
    """PNG files in base64 -> (B, H, W, 3); sizes are checked before anything is unpacked."""
    files = [_open(index, text) for index, text in enumerate(texts)]
    sizes = sorted({file.size for file in files})
    if len(sizes) > 1:
        raise ValueError(f"the pictures of one request must have one size, got {sizes[:4]}")
    width, height = sizes[0]
    if max(width, height) > _MAX_SIDE or width * height * len(files) > _MAX_PIXELS:
        raise ValueError(
            f"{len(files)} pictures of {width} x {height}: a side may have {_MAX_SIDE} pixels and "
            f"all pictures of a request {_MAX_PIXELS}"
        )
    numpy = require("numpy", "To read pictures")
    pictures = torch.empty(len(files), height, width, 3)
    for index, file in enumerate(files):
        try:
            pictures[index] = torch.from_numpy(numpy.array(file))
        except _BROKEN as error:
            raise ValueError(f"image {index} is damaged: {error}") from error
    return pictures / 255.0


_BROKEN = (OSError, SyntaxError, ValueError, struct.error, zlib.error)
"""What Pillow raises for files that are not what they claim."""


def _open(index: int, text: str) -> Any:
    """Read the header of a picture."""
    image = require("PIL.Image", "To read pictures")
    try:
        file = image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",))
    except (*_BROKEN, image.DecompressionBombError) as error:
        raise ValueError(f"image {index} is not PNG in base64, or it is too large") from error
    if file.mode != "RGB":
        raise ValueError(f"image {index} has mode {file.mode}; send 8-bit RGB")
    return file
