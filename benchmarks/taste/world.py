"""Pictures to click on, and people with hidden tastes.

Pictures are rendered scenes of the tiny world with faults: other attributes than the caption's,
other tints, blur and noise; 16 of each of the 480 captions.

Legend: P captions, G pictures of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from chunk_grpo_core.models.tiny.render import render_indices
from chunk_grpo_core.models.tiny.world import SCENES, caption, indices_of
from chunk_grpo_core.rewards.taste.statistics import statistics

__all__ = ["PEOPLE", "PICTURES", "Pool", "likes_of", "pool", "ranks_of"]

PICTURES = 16
_AT_ONCE = 60
"""Captions whose pictures are drawn at once."""


@dataclass(frozen=True)
class Pool:
    """What there is to see."""

    captions: tuple[str, ...]
    wanted: Tensor
    """(P, 5) attributes."""
    drawn: Tensor
    """(P, G, 5) attributes of the pictures."""
    pictures: Tensor
    """(P, G, 64, 64, 3)."""
    raw: Tensor
    """(P, G, 117), what a head sees."""


@cache
def pool() -> Pool:
    """Draw the pictures; always the same."""
    dice = torch.Generator().manual_seed(1)
    wanted = indices_of(SCENES)
    drawn = wanted[:, None].repeat(1, PICTURES, 1)
    most = torch.tensor([2, 2, 6, 4, 6])
    other = (torch.rand(drawn.shape, generator=dice) * most).long()
    drawn = torch.where(torch.rand(drawn.shape, generator=dice) < 0.15, other, drawn)
    parts = [_draw(part.flatten(0, 1), dice) for part in drawn.split(_AT_ONCE)]
    shape = (len(SCENES), PICTURES)
    return Pool(
        tuple(map(caption, SCENES)), wanted, drawn, torch.cat(parts).unflatten(0, shape),
        torch.cat([statistics(part) for part in parts]).unflatten(0, shape),
    )  # fmt: skip


def _draw(attributes: Tensor, dice: torch.Generator) -> Tensor:
    """Attributes (B, 5) -> pictures (B, 64, 64, 3) with faults."""
    pictures = render_indices(attributes, dice)
    count = len(pictures)
    tint = 1 + 0.25 * torch.randn(count, 1, 1, 3, generator=dice)
    shift = 0.1 * torch.randn(count, 1, 1, 1, generator=dice)
    blurred = functional.avg_pool2d(pictures.movedim(-1, 1), 5, 1, 2).movedim(1, -1)
    blur = torch.rand(count, 1, 1, 1, generator=dice)
    noise = 0.08 * torch.rand(count, 1, 1, 1, generator=dice)
    pictures = blur * blurred + (1 - blur) * pictures
    pictures = pictures * tint + shift + noise * torch.randn(pictures.shape, generator=dice)
    return pictures.clamp(0, 1)


def _blue(of: Pool) -> Tensor:
    return (of.pictures[..., 2] - of.pictures[..., :2].mean(-1)).mean((2, 3))


def _yellow_triangles(of: Pool) -> Tensor:
    yellow = (of.pictures[..., :2].amin(-1) - of.pictures[..., 2]).mean((2, 3))
    return yellow / 0.1 + (of.drawn[..., 3] == 2)


def _clean(of: Pool) -> Tensor:
    grey = of.pictures.mean(-1)
    grain = (grey - functional.avg_pool2d(grey, 3, 1, 1)).abs().mean((2, 3))
    return grey.flatten(2).std(-1) - 8 * grain


def _quadratic(of: Pool) -> Tensor:
    luma = of.pictures.mean((2, 3, 4))
    return -((luma - 0.45) ** 2) * 20 + of.pictures.flatten(2).std(-1)


def _conditional(of: Pool) -> Tensor:
    sign = torch.tensor([1.0 if "circle" in text or "square" in text else -1.0
                         for text in of.captions])  # fmt: skip
    return sign[:, None] * of.pictures.mean((2, 3, 4))


def _adherence(of: Pool) -> Tensor:
    return (of.drawn == of.wanted[:, None]).float().mean(-1)


PEOPLE: dict[str, Callable[[Pool], Tensor]] = {
    "blue": _blue,
    "yellow, triangles": _yellow_triangles,
    "clean, contrast": _clean,
    "smooth quadratic": _quadratic,
    "conditional": _conditional,
    "adherence": _adherence,
}


@cache
def likes_of(person: str) -> Tensor:
    """What a person thinks of every picture, (P, G), in deviations of all."""
    likes = PEOPLE[person](pool())
    return likes / likes.std()


@cache
def ranks_of(person: str) -> Tensor:
    """The share of all pictures that each is better than, (P, G), 0 to 1; half of its equals."""
    likes = likes_of(person).flatten()
    order = likes.sort().values
    places = torch.searchsorted(order, likes) + torch.searchsorted(order, likes, right=True)
    return (places / (2 * len(likes))).view(len(pool().captions), PICTURES)
