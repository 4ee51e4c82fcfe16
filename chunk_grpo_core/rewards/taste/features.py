"""What a head sees of a picture: the statistics, and an encoder's embedding if there is one.

An encoder knows what a picture shows and the statistics how it looks; together they are never far
from the better one. Every number is standardised on the pictures that were shown, cut at
``LIMIT`` deviations, so that no rare number can run away, and weighted so that each block counts
the same, however many numbers it has.

Legend: B pictures, D numbers (117 statistics, then those of the encoder).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...models.tensor_cache import TensorCache
from .events import Shown
from .picks import Taste
from .statistics import COUNT, VERSION, statistics

__all__ = ["LIMIT", "Encoder", "Scaling", "features", "features_shown", "scaling"]

LIMIT = 5.0
_CACHE_BYTES = 512 * 2**20
_CACHE_FOLDER = "features"


class Encoder(Protocol):
    """A network that makes numbers of pictures."""

    @property
    def name(self) -> str:
        """For people: the name of its folder or file."""
        ...

    @property
    def digest(self) -> str:
        """Of everything that its numbers depend on: weights, and how pictures are prepared."""
        ...

    @property
    def dims(self) -> int:
        """How many numbers it makes of a picture."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) in 0..1 -> (B, dims), float32 on the CPU.

        The numbers of a picture do not depend on the others.
        """
        ...


@dataclass(frozen=True)
class Scaling:
    """Mean and factor of every number, both (D,), float32."""

    mean: Tensor
    factor: Tensor
    """One over deviation and root of the size of its block; 0 for a number that never changed."""
    blocks: tuple[int, ...]
    """Sizes of the blocks, which sum to D."""

    def __call__(self, raw: Tensor) -> Tensor:
        """Numbers (B, D) -> what a head sees, (B, D), float64."""
        weights = torch.cat([_root(part) for part in self.factor.double().split(self.blocks)])
        scaled = (raw.double() - self.mean) * self.factor
        limit = LIMIT * weights
        return scaled.maximum(-limit).minimum(limit)

    def unfamiliar(self, raw: Tensor) -> Tensor:
        """How far pictures are from those that were shown, (B,): about 1 for one of those."""
        return self(raw).square().sum(1) / max(1, len([size for size in self.blocks if size]))


def features(images: Tensor, encoder: Encoder | None) -> Tensor:
    """Numbers (B, D), float32, of pictures (B, H, W, 3) in 0..1."""
    numbers = [statistics(images)]
    if encoder is not None:
        numbers.append(encoder.embed(images).to("cpu", torch.float32))
    return torch.cat(numbers, 1)


def features_shown(
    taste: Taste, pictures: Sequence[Shown], encoder: Encoder | None
) -> dict[str, Tensor]:
    """Numbers (D,) of pictures that were shown, by their hash; those that are gone are left out.

    They are kept in the folder of the taste, by the hash of the picture and what made them, so
    that every picture is read and encoded once.

    Raises:
        ValueError: A file holds another picture than the one that was shown.
    """
    cache = TensorCache(taste.folder / _CACHE_FOLDER, _CACHE_BYTES)
    made_by = VERSION if encoder is None else f"{VERSION} {encoder.digest}"
    numbers: dict[str, Tensor] = {}
    for shown in pictures:
        if shown.picture in numbers:
            continue
        key = hashlib.sha256(f"{shown.picture} {made_by}".encode()).hexdigest()
        row = cache.load(key)
        if row is None:
            try:
                picture = taste.picture(shown)
            except FileNotFoundError:
                continue
            row = features(picture[None], encoder)[0]
            cache.store(key, row)
        numbers[shown.picture] = row
    return numbers


def scaling(raw: Tensor) -> Scaling:
    """Measure mean and deviation on the pictures that were shown, (n, D)."""
    blocks = (COUNT, raw.shape[1] - COUNT)
    values = raw.double()
    mean = values.mean(0)
    deviation = values.std(0, correction=0)
    moves = deviation > 1e-5 * mean.abs().clamp(min=1e-2)
    factor = torch.where(moves, 1 / deviation.clamp(min=1e-12), 0.0)
    sizes = [max(1, int(part.sum())) for part in moves.split(blocks)]
    roots = [part / size**0.5 for part, size in zip(factor.split(blocks), sizes, strict=True)]
    return Scaling(mean.float(), torch.cat(roots).float(), blocks)


def _root(factor: Tensor) -> Tensor:
    """What one deviation becomes in a block."""
    return torch.full_like(factor, max(1, int((factor != 0).sum())) ** -0.5)
