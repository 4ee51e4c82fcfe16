r"""Does the picture show the words it should: text recognition against the target text.

With n = len(target), all in lower case and without white space:

    score = 1                                  if the text read contains the target
    score = 1 - min(distance(read, target), n) / n                       otherwise
    score = 1 - distance(read, target) / max(len(read), n)               if strict

where distance is Levenshtein's. The first two lines are the reward of Flow-GRPO; they do not mind
further text, so a short target is easily found in a picture full of letters. ``strict`` does.
Of several targets the first two lines give the mean, and ``strict`` takes them as one text, in the
order of the prompt. (Flow-GRPO takes the first alone.)

Legend: B pictures, H W picture size.

References:
    Flow-GRPO: Training Flow Matching Models via Online RL (Liu et al., 2025), arXiv 2505.05470,
    section 5.1 (visual text rendering).
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..method.reward import Fingerprint, RewardBatch, checked_inputs
from ..optional import require
from ..prompts.example import Example, Prompt
from ..settings.declared import shortened
from .pixels import to_levels
from .quoted import quoted_texts

__all__ = [
    "OcrReward",
    "RapidOcr",
    "TextReader",
    "edit_distance",
    "text_likeness",
]

log = logging.getLogger(__name__)

_LONGEST_TARGET = 1000
"""Characters; the distance takes time in proportion to them."""


class TextReader(Protocol):
    """Reads the text in a picture."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What its answer depends on besides the picture."""
        ...

    def __call__(self, levels: Tensor) -> str:
        """Picture (H, W, 3), uint8 -> its text, lines from top to bottom; may raise anything."""
        ...


class RapidOcr:
    """PP-OCR networks on ONNX runtime, on the CPU; they come inside the package ``rapidocr``.

    It brings ``opencv-python-headless``, which puts its files where ``opencv-python`` has its own.
    Whoever has that installs ``rapidocr`` with ``--no-deps`` and then what it still misses.
    """

    def __init__(self, longest_side: int = 640, threads: int | None = None) -> None:
        """Load the networks.

        Args:
            longest_side: Pixels. Larger pictures are reduced to it before text is looked for: less
                is faster and misses small text.
            threads: Of ONNX runtime; its own choice by default.

        Raises:
            ImportError: ``rapidocr`` or ``onnxruntime`` is not installed.
            ValueError: A number is below its least, 32 and 1.
        """
        if longest_side < 32:
            raise ValueError(f"longest_side is {longest_side}; it must be at least 32")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; it must be at least 1")
        require("onnxruntime", "To read text in pictures")
        rapidocr = require("rapidocr", "To read text in pictures")
        engine = "EngineConfig.onnxruntime"
        params = {
            "Global.log_level": "error",
            "Global.use_cls": False,  # text upside down is no rendered text
            "Det.limit_side_len": longest_side,
            "Det.limit_type": "max",
            f"{engine}.intra_op_num_threads": threads or -1,
            f"{engine}.inter_op_num_threads": threads or -1,
        }
        self._engine = rapidocr.RapidOCR(params=params)
        self.fingerprint: Fingerprint = {
            "engine": f"rapidocr {importlib.metadata.version('rapidocr')}",
            "longest_side": longest_side,
        }

    def __call__(self, levels: Tensor) -> str:
        """See :class:`TextReader`."""
        blue_green_red = levels.flip(-1).contiguous().numpy()
        return " ".join(self._engine(blue_green_red).txts or ())


class OcrReward:
    """How well the text in a picture fits the target text, 0..1."""

    name = "ocr"

    def __init__(
        self,
        reader: TextReader,
        *,
        strict: bool = False,
        no_target: Literal["error", "mask"] = "error",
    ) -> None:
        """Set up.

        Args:
            reader: Reads the text, for example :class:`RapidOcr`.
            strict: Whether text beside the target costs.
            no_target: What to do with a prompt without a target text: stop, or give its pictures
                no valid score.

        Raises:
            ValueError: ``no_target`` is something else.
        """
        if no_target not in ("error", "mask"):
            raise ValueError(f"no_target is {shortened(no_target)}; it must be 'error' or 'mask'")
        self.strict = strict
        self.no_target = no_target
        self.reader = reader

    @property
    def fingerprint(self) -> Fingerprint:
        """Reader and rule."""
        return {**self.reader.fingerprint, "strict": self.strict}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """Score B pictures.

        Args:
            images: (B, H, W, 3), CPU float32 in 0..1.
            examples: B prompts. The target is ``target_text`` in the metadata (a text, or a list
                of them), or else what stands in the prompt in quotation marks
                (:func:`~chunk_grpo_core.rewards.quoted.quoted_texts`).

        Returns:
            Scores in 0..1. A picture that is not finite, or on which the reader fails, has none.

        Raises:
            ValueError: Shapes or lengths do not match, or a prompt has no target text, or one that
                is no text or too long.
        """
        images, examples = checked_inputs(images, examples)
        targets = list(map(self._targets, examples))
        scores = [self._one(image, target) for image, target in zip(images, targets, strict=True)]
        return RewardBatch.of(torch.tensor(scores, dtype=torch.float32))

    def _targets(self, example: Example) -> list[str]:
        """The texts to look for, with a character in each; none if there are none."""
        stated = example.metadata.get("target_text")
        texts = quoted_texts(example.text) if stated is None else stated
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
            raise ValueError(
                f"target_text is {stated!r:.100}; it must be a text, or a list of texts"
            )
        targets = [text for text in texts if _plain(text)]
        if sum(map(len, targets)) > _LONGEST_TARGET:
            raise ValueError(
                f"the target text of the prompt {example.text!r:.100} is longer than "
                f"{_LONGEST_TARGET} characters"
            )
        if not targets and self.no_target == "error":
            raise ValueError(
                f"the prompt {example.text!r:.200} does not say which text to read; put it in "
                "quotation marks, give target_text in its metadata, or set no_target to 'mask'"
            )
        return targets

    def _one(self, image: Tensor, targets: Sequence[str]) -> float:
        if not targets or not torch.isfinite(image).all():
            return float("nan")
        try:
            read = self.reader(to_levels(image))
        except Exception as error:  # engines raise all sorts; the picture is masked and counted
            log.warning("the text of a picture could not be read: %r", error)
            return float("nan")
        if self.strict:
            return text_likeness(read, "".join(targets), strict=True)
        return sum(text_likeness(read, target) for target in targets) / len(targets)


def text_likeness(read: str, target: str, *, strict: bool = False) -> float:
    """Compare the text read with the target, in 0..1; case and white space do not count.

    Raises:
        ValueError: The target is empty.
    """
    read, target = _plain(read), _plain(target)
    if not target:
        raise ValueError("the target text is empty")
    distance = edit_distance(read, target)
    if strict:
        return 1.0 - distance / max(len(read), len(target))
    return 1.0 if target in read else 1.0 - min(distance, len(target)) / len(target)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance: least number of characters to insert, delete or replace."""
    row = list(range(len(b) + 1))  # row[j]: distance of the characters of a so far and b[:j]
    for i, character in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            replaced = diagonal + (character != other)
            diagonal = row[j]
            row[j] = min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def _plain(text: str) -> str:
    return "".join(text.lower().split())
