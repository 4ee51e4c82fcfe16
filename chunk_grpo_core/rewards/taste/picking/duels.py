"""Which two pictures are asked about next.

Every picture of a batch stands in two duels, in an order and on sides that are drawn by the id of
the batch: every page, and the page of tomorrow, asks the same. About every tenth duel is an old one
with its sides swapped: how often a person agrees with themselves is the most that a head can reach.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..events import Pick
from .batches import Batch
from .marks import Marks, keys_of, pair_of

__all__ = ["REPEAT_EVERY", "Duel", "open_duels", "repeated_duel"]

REPEAT_EVERY = 10
_FRESH = 3
"""So many duels ago one is still remembered, and not asked again."""


@dataclass(frozen=True)
class Duel:
    """Two pictures of a batch, by their places: left, right."""

    batch: Batch
    places: tuple[int, int]


def open_duels(batch: Batch, marks: Marks) -> list[tuple[int, int]]:
    """The duels of a batch that nobody has answered or skipped, as places (left, right)."""
    count, dice = len(batch.shown), random.Random(f"duels of {batch.id}")
    order = dice.sample(range(count), count)
    circle = list(zip(order, order[1:] + order[:1], strict=True))
    if count < 3:  # there and back would be the same duel
        circle = circle[:-1]
    duels = []
    for one, other in circle:
        sides = (one, other) if dice.random() < 0.5 else (other, one)
        pair = frozenset((batch.keys[one], batch.keys[other]))
        if len(pair) == 2 and pair not in marks.asked:
            duels.append(sides)
    return duels


def repeated_duel(batches: Sequence[Batch], marks: Marks) -> Duel | None:
    """An old duel to ask again with its sides swapped, if it is time for one."""
    answered = marks.answered
    if len(answered) % REPEAT_EVERY != REPEAT_EVERY - 1:
        return None
    times = Counter(map(pair_of, answered))
    skipped = {pair_of(pick) for pick in marks.stands if pick.kind == "skip"}
    candidates = [
        duel
        for pick in answered[:-_FRESH]
        if times[pair_of(pick)] == 1 and pair_of(pick) not in skipped
        and (duel := _swapped(pick, batches)) is not None
    ]  # fmt: skip
    return random.Random(len(answered)).choice(candidates) if candidates else None


def _swapped(pick: Pick, batches: Sequence[Batch]) -> Duel | None:
    """The same duel from the other side, in a batch that shows both pictures."""
    right, left = keys_of(pick)
    for batch in batches:
        if left in batch.keys and right in batch.keys:
            return Duel(batch, (batch.keys.index(left), batch.keys.index(right)))
    return None
