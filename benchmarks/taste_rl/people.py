"""Simulated people, what they think of pictures of the tiny world, and the heads fitted on them.

Everything is in deviations of the pool: 192 training captions with 8 pictures each, as the base
model draws them. Legend: B pictures, P captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from chunk_grpo_core.models.tiny.measure import Reading, measure
from chunk_grpo_core.models.tiny.model import load_tiny_flux, sample_images
from chunk_grpo_core.models.tiny.reward import WEIGHTS, TinyWorldReward
from chunk_grpo_core.rewards.taste.events import Pick
from chunk_grpo_core.rewards.taste.fit import Fitted, fit_picks
from chunk_grpo_core.rewards.taste.statistics import statistics

from ..race.judge import TRAINING
from ..race.worlds import ScoresReward
from ..taste.clicking import clicks, name_of

__all__ = [
    "PICTURES",
    "PROMPT",
    "TASTES",
    "WRONG",
    "drawn_with",
    "first_picks",
    "fitted",
    "later_picks",
    "pool",
    "prompt_deviation",
    "scale",
]

PICTURES = 8
"""Of each caption to click on."""
WRONG = 0.1
"""Share of clicks that miss, also in blind duels."""
_CAPTIONS = TRAINING[:192]
_POOL_SEED, _POOL_BATCH = 60_000, 64
_ATTRIBUTES = {name: weight for name, weight in WEIGHTS.items() if name != "clean"}

PROMPT = ScoresReward(
    "prompt", {name: weight / sum(_ATTRIBUTES.values()) for name, weight in _ATTRIBUTES.items()}
)
"""Adherence: the five attributes of the caption; cleanliness is one of the tastes."""


@dataclass(frozen=True)
class Seen:
    """What a person looks at."""

    images: Tensor
    texts: Sequence[str]
    reading: Reading
    clean: Tensor


def _large_blue(of: Seen) -> tuple[Tensor, ...]:
    blue = of.images[..., 2] - of.images[..., :2].mean(-1)
    return of.reading.areas.sum(1), blue.mean((1, 2))


def _clean(of: Seen) -> tuple[Tensor, ...]:
    return (of.clean,)


def _yellow_triangles(of: Seen) -> tuple[Tensor, ...]:
    yellow = of.images[..., :2].amin(-1) - of.images[..., 2]
    return yellow.mean((1, 2)), of.reading.overlap[:, :, 2].amax(1)


def _conditional(of: Seen) -> tuple[Tensor, ...]:
    sign = [1.0 if "circle" in text or "square" in text else -1.0 for text in of.texts]
    return (torch.tensor(sign) * of.images.mean((1, 2, 3)),)


TASTES: dict[str, Callable[[Seen], tuple[Tensor, ...]]] = {
    "large blue": _large_blue,
    "clean": _clean,
    "yellow triangles": _yellow_triangles,
    "conditional": _conditional,
}
"""Terms, each (B,), which are brought to one scale and added: large objects and blue pictures;
cleanliness; yellow pictures and triangles; light pictures of circles and squares, dark ones of
triangles and crosses."""


@dataclass(frozen=True)
class Pool:
    """Pictures to click on."""

    texts: list[str]
    """The caption of each picture, B."""
    images: Tensor
    raw: Tensor
    """(B, 117), what a head sees."""


@cache
def pool() -> Pool:
    """What the base model draws; always the same."""
    texts = [text for text in _CAPTIONS for _ in range(PICTURES)]
    flux = load_tiny_flux()
    parts = [
        sample_images(flux, texts[start : start + _POOL_BATCH], _POOL_SEED + start).clamp(0, 1)
        for start in range(0, len(texts), _POOL_BATCH)
    ]
    images = torch.cat(parts)
    return Pool(texts, images, statistics(images))


def drawn_with(name: str) -> tuple[int, int]:
    """Seed of the batch that a picture of the pool was drawn in, and its place there."""
    batch, index = divmod(int(name, 16), _POOL_BATCH)
    return _POOL_SEED + batch * _POOL_BATCH, index


def _see(images: Tensor, texts: Sequence[str]) -> Seen:
    clean = TinyWorldReward().score(images, texts).extras["clean"]
    return Seen(images, texts, measure(images), clean)


@dataclass(frozen=True)
class Scale:
    """Brings a number of pictures to deviations of the pool."""

    taste: str
    terms: tuple[tuple[float, float], ...]
    """Mean and deviation of each term."""
    whole: float
    """Deviation of their sum."""

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """What the person thinks of pictures, (B,)."""
        return self._sum(TASTES[self.taste](_see(images, texts))) / self.whole

    def _sum(self, terms: Sequence[Tensor]) -> Tensor:
        scaled = [(x - mean) / std for x, (mean, std) in zip(terms, self.terms, strict=True)]
        return torch.stack(scaled).sum(0)


@cache
def scale(taste: str) -> Scale:
    """The scale of a taste, from the pool."""
    terms = TASTES[taste](_see(pool().images, pool().texts))
    moments = tuple((float(term.mean()), float(term.std())) for term in terms)
    unscaled = Scale(taste, moments, 1.0)
    return Scale(taste, moments, float(unscaled._sum(terms).std()))


@cache
def prompt_deviation() -> float:
    """Deviation of adherence in the pool."""
    return float(PROMPT.score(pool().images, pool().texts).values.std())


@cache
def _likes(taste: str) -> Tensor:
    return scale(taste)(pool().images, pool().texts).view(-1, PICTURES)


def _seed(taste: str, seed: int) -> int:
    return 1000 * (1 + list(TASTES).index(taste)) + seed


def first_picks(taste: str, count: int, seed: int) -> list[Pick]:
    """Duels on the pool."""
    return clicks(_likes(taste), count, WRONG, _seed(taste, seed), captions=_CAPTIONS)


def fitted(picks: Sequence[Pick], later: tuple[Tensor, int] | None = None) -> Fitted:
    """A head, from the statistics alone.

    Args:
        picks: On pictures of the pool, and on later ones.
        later: Pictures (P, 8, H, W, 3) that were drawn in mid-training, and the number of their
            first caption.
    """
    numbers = {name_of(i): row for i, row in enumerate(pool().raw)}
    if later is not None:
        images, first = later
        for i, row in enumerate(statistics(images.flatten(0, 1))):
            numbers[name_of(first * PICTURES + i)] = row
    shown = {one.picture for pick in picks for one in pick.shown}
    return fit_picks(picks, {name: numbers[name] for name in shown})


def later_picks(
    taste: str, count: int, seed: int, images: Tensor, captions: Sequence[str], first: int
) -> list[Pick]:
    """Duels on pictures (P, 8, H, W, 3) of captions that were drawn in mid-training."""
    texts = [text for text in captions for _ in range(PICTURES)]
    likes = scale(taste)(images.flatten(0, 1), texts).view(-1, PICTURES)
    return clicks(likes, count, WRONG, 500 + _seed(taste, seed), captions=captions, first=first)
