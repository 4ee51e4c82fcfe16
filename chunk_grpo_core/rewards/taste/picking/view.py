"""What a page shows of a taste, and what a click of the page becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....settings.declared import shortened
from ..events import Pick, counting
from ..fit import clicks_in
from ..picks import Taste
from ..report import own_agreement
from .acts import answer_duel, choose_best, close, give_stars, mark_hearts, skip, undo_last
from .batches import Batch, read_batch, read_batches
from .duels import open_duels, repeated_duel
from .marks import Marks

__all__ = ["ENOUGH", "act", "batch_views", "taste_view"]

ENOUGH = {"fit": 20, "train": 40, "good": 80, "best": 160}
"""Clicks from which on it is worth while to fit, to train, and to go on until."""


def taste_view(taste: Taste) -> dict[str, Any]:
    """All that a page shows, JSON-ready.

    Returns:
        ``picks`` and ``clicks`` that count; ``enough``; ``own`` (``asked``, ``agreed``: duels asked
        again); ``batches``, the newest last, each with ``id``, ``kind``, ``prompt``, ``pictures``
        (hashes), ``numbers`` (in the batch of the graph, from 1), ``hearts``, ``best``, ``stars``,
        ``skipped``, ``duels`` (places still to be asked) and ``dueled`` (how many were answered);
        ``repeat``, the duel to be asked next before any other, or None.

    Raises:
        ValueError: The file of picks holds a line that is none.
        OSError: It cannot be read.
    """
    picks, batches = taste.picks(), read_batches(taste)
    counted, marks = counting(picks), Marks(picks)
    own, repeat = own_agreement(counted), repeated_duel(batches, marks)
    return {
        "picks": len(counted),
        "clicks": clicks_in(counted),
        "enough": ENOUGH,
        "own": {"asked": own.clicks, "agreed": own.agreed},
        "batches": [_batch_view(batch, marks) for batch in batches],
        "repeat": None if repeat is None else {
            "batch": repeat.batch.id, "places": list(repeat.places)},
    }  # fmt: skip


def batch_views(taste: Taste, names: Sequence[str]) -> list[dict[str, Any]]:
    """Some batches as :func:`taste_view` shows them.

    Raises:
        FileNotFoundError: There is no batch of a name.
        ValueError: See :func:`taste_view`.
        OSError: See there.
    """
    marks = Marks(taste.picks())
    return [_batch_view(read_batch(taste, name), marks) for name in names]


def _batch_view(batch: Batch, marks: Marks) -> dict[str, Any]:
    return {
        "id": batch.id,
        "kind": batch.kind,
        "prompt": batch.prompt,
        "pictures": [one.picture for one in batch.shown],
        "numbers": [(one.index or 0) + 1 for one in batch.shown],
        "hearts": marks.hearts(batch),
        "best": marks.best(batch),
        "stars": marks.stars(batch),
        "skipped": marks.is_skipped(batch),
        "duels": [list(places) for places in open_duels(batch, marks)],
        "dueled": len(marks.duels(batch)),
    }


def act(taste: Taste, said: Any) -> list[Pick]:
    """Do what a page asks for.

    Args:
        taste: Where.
        said: ``do``: hearts, best, stars, duel, skip, undo or done (nothing more will be said). All
            but undo need ``batch``, an id; hearts and stars ``marks``, a list of [place, mark];
            best ``place``; duel ``places`` (left, right) and ``answer`` (0, 1 or null: same); skip
            may have ``places``. ``ms``: milliseconds that the person took, or nothing.

    Returns:
        The picks that were added.

    Raises:
        ValueError: It is something else, or does not fit to the batch.
        FileNotFoundError: There is no such batch.
        InUse: Somebody else has been writing for half a minute.
        CannotWrite: The disk is full, or something else is in the way.
    """
    if not isinstance(said, dict):
        raise ValueError(f"{shortened(said)} is no object")
    what, ms = said.get("do"), said.get("ms")
    if what == "undo":
        among = {key for batch in read_batches(taste) for key in batch.keys}
        return taste.decide(lambda picks: undo_last(picks, among))
    name = said.get("batch")
    if not isinstance(name, str):
        raise ValueError(f"batch is {shortened(name)}; it must be the id of a batch")
    batch = read_batch(taste, name)
    if what == "hearts":
        marks = _marks(said)
        return taste.decide(lambda picks: mark_hearts(batch, marks, picks, ms))
    if what == "stars":
        marks = _marks(said)
        return taste.decide(lambda picks: give_stars(batch, marks, picks, ms))
    if what == "best":
        return taste.decide(lambda picks: choose_best(batch, said.get("place"), picks, ms))
    if what == "duel":
        places, answer = _places(said), said.get("answer")
        return taste.decide(lambda picks: answer_duel(batch, places, answer, ms))
    if what == "skip":
        places = _places(said) if said.get("places") is not None else None
        return taste.decide(lambda picks: skip(batch, places, ms))
    if what == "done":
        return taste.decide(lambda picks: close([batch], picks))
    raise ValueError(
        f"do is {shortened(what)}; it must be hearts, best, stars, duel, skip, done or undo"
    )


def _marks(said: Mapping[str, Any]) -> dict[int, int]:
    marks = said.get("marks")
    if (
        not isinstance(marks, list)
        or not marks
        or not all(isinstance(m, list) and len(m) == 2 and all(type(n) is int for n in m)
                   for m in marks)
    ):  # fmt: skip
        raise ValueError(f"marks is {shortened(marks)}; it must be a list of [place, mark]")
    return {place: mark for place, mark in marks}


def _places(said: Mapping[str, Any]) -> list[int]:
    places = said.get("places")
    if not isinstance(places, list) or len(places) != 2:
        raise ValueError(f"places is {shortened(places)}; it must be two places, left and right")
    return places
