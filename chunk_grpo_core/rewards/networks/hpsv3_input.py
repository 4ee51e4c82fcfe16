"""What HPSv3 is shown: a picture cut into patches, and a fixed question that quotes the prompt.

A prompt is data: no text in it becomes a special token, so none can add a second picture, end the
turn or move the place where the score is read. The authors' code lets it.

Legend: B pictures, H W picture size, h w picture size in patches, N = h*w patches, P numbers per
patch, L tokens.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...optional import require
from ..files import digest
from ..pixels import MAX_ASPECT, normalised
from .tokens import folder_with

__all__ = [
    "PIXELS",
    "QWEN_FILES",
    "SpecialTokens",
    "Text",
    "instruction",
    "load_text",
    "patches",
    "prepared",
    "smart_resize",
]

PIXELS = 256 * 28 * 28
"""Size every picture is brought to, about."""
QWEN_FILES = ("vocab.json", "merges.txt")

_PATCH, _MERGE, _FRAMES = 14, 2, 2
_CELL = _PATCH * _MERGE
# What Qwen2 cuts a text into before pairs are merged.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QUESTION = "\nPlease provide the overall ratings of this image: "
_AFTER = "\n\nEND\n"


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids that no text is turned into; the defaults are those of Qwen2-VL and HPSv3."""

    padding: int = 151643
    """Also the number of ordinary tokens before it."""
    turn_start: int = 151644
    turn_end: int = 151645
    vision_start: int = 151652
    vision_end: int = 151653
    image: int = 151655
    """Stands for four patches."""
    video: int = 151656
    reward: int = 151657
    """The score is read at this token; the last row of the embeddings."""


def smart_resize(height: int, width: int) -> tuple[int, int]:
    """Size near :data:`PIXELS` in multiples of 28, as HPSv3 asks of Qwen2-VL.

    Returns:
        Height and width: below the budget where rounding alone would exceed it, above it where
        rounding alone would stay below.

    Raises:
        ValueError: One side is more than 200 times the other, or 0.
    """
    if min(height, width) < 1 or max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"a picture has {width} x {height} pixels; the longer side may be at most "
            f"{MAX_ASPECT} times the shorter"
        )
    rounded = [max(_CELL, round(side / _CELL) * _CELL) for side in (height, width)]
    area = rounded[0] * rounded[1]
    if area > PIXELS:
        shrink = math.sqrt(height * width / PIXELS)
        rounded = [math.floor(side / shrink / _CELL) * _CELL for side in (height, width)]
    elif area < PIXELS:
        grow = math.sqrt(PIXELS / (height * width))
        rounded = [math.ceil(side * grow / _CELL) * _CELL for side in (height, width)]
    return rounded[0], rounded[1]


def prepared(levels: Tensor) -> Tensor:
    """Resize a picture (H, W, 3) in 8 bits with PIL's bicubic filter; see :func:`smart_resize`."""
    image = require("PIL.Image", "To resize pictures")
    numpy = require("numpy", "To resize pictures")
    height, width = smart_resize(*levels.shape[:2])
    resized = image.fromarray(levels.numpy()).resize((width, height), image.BICUBIC)
    return torch.from_numpy(numpy.array(resized))


def patches(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a picture into normalised patches, four neighbours after each other.

    Args:
        levels: (H, W, 3) in 8 bits, both sides multiples of 28.

    Returns:
        Patches (N, P), float32, P = 3 * 2 * 14 * 14, and the grid (1, h, w), int64.
    """
    h, w = (side // _PATCH for side in levels.shape[:2])
    picture = normalised(levels.permute(2, 0, 1).float() / 255.0)
    cells = picture.reshape(3, h // _MERGE, _MERGE, _PATCH, w // _MERGE, _MERGE, _PATCH)
    cells = cells.permute(1, 4, 2, 5, 0, 3, 6).reshape(h * w, 3, 1, _PATCH, _PATCH)
    # A video of two equal frames.
    return cells.expand(-1, -1, _FRAMES, -1, -1).reshape(h * w, -1), torch.tensor([1, h, w])


@functools.cache
def instruction() -> str:
    """The authors' question, word for word, with ``{text_prompt}`` in it; the MIT licence it came
    under is beside it."""
    return (Path(__file__).parent / "hpsv3_prompt.txt").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Text:
    """The tokenizer and the conversation around picture and prompt."""

    encode: Callable[[str], list[int]]
    """A text -> ids below ``special.padding``."""
    special: SpecialTokens
    digest: str
    """Fingerprint of the tokenizer's files and the question."""

    def tokens(self, prompt: str, count: int) -> list[int]:
        """Ids of the whole conversation about a picture of ``count`` patches."""
        special, encode = self.special, self.encode
        question = instruction().replace("{text_prompt}", prompt) + _QUESTION
        return [
            special.turn_start,
            *encode("system\nYou are a helpful assistant."),
            special.turn_end,
            *encode("\n"),
            special.turn_start,
            *encode("user\n"),
            special.vision_start,
            *[special.image] * (count // _MERGE**2),
            special.vision_end,
            *encode(question),
            special.reward,
            *encode(_AFTER),
            special.turn_end,
            *encode("\n"),
            special.turn_start,
            *encode("assistant\n"),
        ]

    def __call__(self, prompts: Sequence[str], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Ids and mask of B conversations, int64 (B, L); padding is on the right, masked with 0."""
        rows = [self.tokens(*pair) for pair in zip(prompts, counts, strict=True)]
        ids = torch.full((len(rows), max(map(len, rows))), self.special.padding)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return ids, mask


def load_text(folders: Sequence[str | Path], special: SpecialTokens) -> Text:
    """Load the byte pairs of Qwen2, without the special tokens that its versions add differently.

    Args:
        folders: The first that holds ``vocab.json`` and ``merges.txt`` is taken. Those of Qwen2,
            Qwen2-VL and Qwen2.5 are the same.
        special: Ids of the special tokens.

    Raises:
        FileNotFoundError: No folder holds the files.
        ValueError: They have another number of entries.
    """
    folder = folder_with(QWEN_FILES, folders, "Qwen2's tokenizer", "Qwen/Qwen2-VL-7B-Instruct")
    tokenizers = require("tokenizers", "To read prompts")
    cuts, pairs = tokenizers.pre_tokenizers, tokenizers.models.BPE
    paths = [folder / name for name in QWEN_FILES]
    vocabulary, merges = pairs.read_file(*map(str, paths))
    if len(vocabulary) != special.padding:
        raise ValueError(
            f"the vocabulary in {folder} has {len(vocabulary)} entries; HPSv3 reads the one of "
            f"Qwen2, which has {special.padding}"
        )
    backend = tokenizers.Tokenizer(pairs(vocabulary, merges))
    backend.normalizer = tokenizers.normalizers.NFC()
    words = cuts.Split(tokenizers.Regex(_WORDS), behavior="isolated")
    backend.pre_tokenizer = cuts.Sequence(
        [words, cuts.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    facts = "".join(map(digest, paths)) + instruction() + _QUESTION + _AFTER
    return Text(
        encode=lambda text: backend.encode(text, add_special_tokens=False).ids,
        special=special,
        digest=hashlib.sha256(facts.encode()).hexdigest(),
    )
