"""Captions as short vectors, for tastes that ask for one thing here and another thing there.

Every word adds +1 or -1 at one of 128 places that its hash names; no vocabulary, no network. The
mean of the captions that were shown is taken away, so that words which all of them have do not
count.

References:
    Feature Hashing for Large Scale Multitask Learning (Weinberger et al., 2009), arXiv 0902.2206.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SIZE", "VERSION", "caption_vectors", "mean_caption"]

SIZE = 128
VERSION = "hashed-words-1"


def mean_caption(captions: Sequence[str]) -> Tensor:
    """What the different captions among some have in common, (128,), float32."""
    return _hashed(list(dict.fromkeys(captions))).mean(0).float()


def caption_vectors(captions: Sequence[str], mean: Tensor) -> Tensor:
    """Captions -> (B, 128), float64, of length 1, or 0."""
    return _unit(_hashed(captions) - mean.double())


def _hashed(captions: Sequence[str]) -> Tensor:
    vectors = torch.zeros(len(captions), SIZE, dtype=torch.float64)
    for row, caption in zip(vectors, captions, strict=True):
        for word in re.findall(r"\w+", caption.casefold()):
            code = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little")
            row[code % SIZE] += 1.0 if code >> 16 & 1 else -1.0
    return _unit(vectors)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-6)
