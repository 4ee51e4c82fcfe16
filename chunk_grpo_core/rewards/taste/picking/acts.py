"""What a person does, as picks to add: pure functions of a batch and of the picks so far.

A new mark takes the place of the old one by an undo of it. What is done at once has ids that only
differ in the number at their end, and is taken back at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from ..events import Pick, new_pick, standing
from .batches import Batch, Key
from .marks import Marks, keys_of

__all__ = ["answer_duel", "choose_best", "close", "give_stars", "mark_hearts", "skip", "undo_last"]


def mark_hearts(
    batch: Batch, marks: dict[int, int], picks: Sequence[Pick], ms: int | None = None
) -> list[Pick]:
    """Like, reject or unmark some pictures; the others keep their marks.

    Args:
        batch: What is shown.
        marks: Place, from 0 -> 1 (liked), 0 or -1 (rejected). A picture that is shown alone is
            liked or rejected; 0 changes nothing there.
        picks: All so far.
        ms: Milliseconds that the person took.

    Raises:
        ValueError: A place or mark is none.
    """
    for place in marks:
        _check_place(batch, place)
    standing_marks = Marks(picks)
    before = standing_marks.hearts(batch)
    after = [marks.get(place, mark) for place, mark in enumerate(before)]
    if after == before:
        return []
    if len(batch.shown) == 1:
        if after[0] not in (-1, 1):
            return []
        old = standing_marks.of("like", batch.shown)
        return _instead(old, [new_pick("like", batch.shown, after[0] == 1, ms=ms)])
    old = standing_marks.of("hearts", batch.shown)
    return _instead(old, [new_pick("hearts", batch.shown, after, ms=ms)])


def choose_best(
    batch: Batch, place: Any, picks: Sequence[Pick], ms: int | None = None
) -> list[Pick]:
    """Name the best of the batch, instead of another one.

    Raises:
        ValueError: The batch has one picture, or the place is none.
    """
    _check_place(batch, place)
    if len(batch.shown) < 2:
        raise ValueError("the best of one picture says nothing; like it, or give it stars")
    old = Marks(picks).of("best", batch.shown)
    if old and old[-1].answer == place:
        return []
    return _instead(old, [new_pick("best", batch.shown, place, ms=ms)])


def give_stars(
    batch: Batch, stars: dict[int, int], picks: Sequence[Pick], ms: int | None = None
) -> list[Pick]:
    """Give pictures 1 to 5 stars, or -1: rejected.

    Raises:
        ValueError: A place or a number is none.
    """
    standing_marks = Marks(picks)
    old: list[Pick] = []
    new: list[Pick] = []
    for place, value in stars.items():
        _check_place(batch, place)
        pick = new_pick("stars", [batch.shown[place]], value, ms=ms)
        before = standing_marks.of("stars", [batch.shown[place]])
        if not before or before[-1].answer != value:
            old += before
            new.append(pick)
    return _instead(old, new)


def answer_duel(
    batch: Batch, places: Sequence[int], answer: int | None, ms: int | None = None
) -> list[Pick]:
    """The first (0) or the second (1) of two is better, or neither (None).

    Raises:
        ValueError: A place is none, or it is the same picture twice.
    """
    for place in places:
        _check_place(batch, place)
    shown = [batch.shown[place] for place in places]
    if len(shown) != 2 or shown[0].picture == shown[1].picture:
        raise ValueError("a duel needs two different pictures")
    return [new_pick("same" if answer is None else "duel", shown, answer, ms=ms)]


def skip(batch: Batch, places: Sequence[int] | None = None, ms: int | None = None) -> list[Pick]:
    """Say nothing about a batch, or about two pictures of it.

    Raises:
        ValueError: A place is none.
    """
    for place in places or ():
        _check_place(batch, place)
    shown = batch.shown if places is None else [batch.shown[place] for place in places]
    return [new_pick("skip", shown, ms=ms)]


def close(batches: Sequence[Batch], picks: Sequence[Pick]) -> list[Pick]:
    """Nothing more will be said about some batches; those that are closed already stay so."""
    closed = {keys_of(pick) for pick in picks if pick.kind == "done"}
    return [new_pick("done", batch.shown) for batch in batches if batch.keys not in closed]


def undo_last(picks: Sequence[Pick], among: Collection[Key] | None = None) -> list[Pick]:
    """Take back what was done last, and all that was done with it; nothing if there is nothing.

    Args:
        picks: All so far.
        among: (Picture, prompt): only picks of such pictures are taken back; None: any.
    """
    stands = {pick.id for pick in standing(picks)}
    for last in range(len(picks) - 1, -1, -1):
        pick = picks[last]
        keys = set(keys_of(pick))
        if (
            pick.id in stands
            and pick.kind != "done"
            and (among is None or (keys and keys <= set(among)))
        ):
            break
    else:
        return []
    act = _act(picks[last])
    together = [p for p in picks if _act(p) == act and (p.id in stands or p.kind == "undo")]
    return _instead(together[::-1], [])


def _instead(old: Sequence[Pick], new: Sequence[Pick]) -> list[Pick]:
    """Undo the old ones and add the new ones, as one act."""
    added = [new_pick("undo", [], pick.id) for pick in old] + list(new)
    return [replace(pick, id=f"{added[0].id}-{n}") for n, pick in enumerate(added)]


def _act(pick: Pick) -> str:
    """What the ids of all that was done at once have in common."""
    return re.sub(r"-\d+$", "", pick.id)


def _check_place(batch: Batch, place: Any) -> None:
    if type(place) is not int or not 0 <= place < len(batch.shown):
        raise ValueError(f"there is no picture {place!r:.40}; there are {len(batch.shown)}, from 0")
