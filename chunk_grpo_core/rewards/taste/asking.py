"""Ask a person about pictures, and wait for what they pick.

The answer to a question is what stood about its pictures when each of its groups was closed (the
pick ``done``): later clicks teach the taste, but change no answer. So a training that was killed
finds the answers that it had, as long as it makes the same pictures.

    <taste>/asked.json    what is asked now, for programs that answer; only there meanwhile
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ...disk.atomic import write_whole
from ...disk.regular import read_regular
from ...method.asking import WAYS, Person, Question
from ..safe_json import parse_json
from .events import Pick, counting
from .fit import clicks_in
from .picking.acts import close
from .picking.batches import Batch, read_batch
from .picking.duels import open_duels
from .picking.marks import Marks, keys_of
from .picking.said import Said, add_said, parse_said
from .picks import Taste

__all__ = [
    "ASKED_FILE",
    "AnswerClosed",
    "answer",
    "answer_in_words",
    "asked_batches",
    "clicks_about",
]

ASKED_FILE = "asked.json"


class AnswerClosed(ValueError):
    """The answer about some pictures was given already; nothing can be added to it."""


def answer(
    taste: Taste,
    batches: Sequence[Batch],
    person: Person,
    *,
    kind: str,
    why: str,
    wanted: int = 0,
) -> list[Pick]:
    """Ask about batches until each is closed; what is closed already is not asked again.

    Args:
        taste: Where the clicks are kept.
        batches: What is asked about, all of one question.
        person: Who is asked.
        kind: How it is shown first.
        why: For the person.
        wanted: Clicks about all of them after which they are closed; 0 closes them as soon as
            about each something complete was said.

    Returns:
        All picks of the taste, in order, up to the moment at which the last batch was closed.

    Raises:
        ValueError: The file of picks was damaged meanwhile.
        Exception: Whatever the person raises to cancel.
    """
    state, picks = None, taste.picks()
    if (before := _closed(picks, batches)) is not None:
        return before
    _tell(taste, batches, kind, wanted, why)
    try:
        while True:
            if (now := _state(taste.file)) != state or state is None:
                state, picks = now, taste.picks()
                if (closed := _closed(picks, batches)) is not None:
                    return closed
            given = clicks_about(batches, picks)
            question = Question(
                folder=taste.folder,
                batches=tuple(batch.id for batch in batches),
                kind=kind,
                given=given,
                wanted=wanted,
                why=why,
            )
            is_enough = given >= wanted if wanted else _are_answered(batches, picks)
            if is_enough or person.wait(question):
                taste.decide(lambda written: close(batches, written))
                state = None
    finally:
        with suppress(FileNotFoundError):
            (taste.folder / ASKED_FILE).unlink()
        person.answered()


def clicks_about(batches: Sequence[Batch], picks: Sequence[Pick]) -> int:
    """How many clicks that count say which picture of some batches is better."""
    shown = {key for batch in batches for key in batch.keys}
    return clicks_in([pick for pick in counting(picks) if shown.issuperset(keys_of(pick))])


def answer_in_words(
    taste: Taste, batches: Sequence[Batch], text: str, *, closes: bool
) -> list[Pick]:
    """Add the picks that a text says about batches that are asked about (``picking/said.py``).

    Args:
        taste: Where.
        batches: What is asked about.
        text: Nothing, for an answer that only closes.
        closes: Whether that was all about these batches.

    Raises:
        AnswerClosed: All batches are closed, or the text names a picture of one that is; nothing
            is added.
        ValueError: The text is none, or does not fit to the pictures; nothing is added.
        InUse: Somebody else has been writing for half a minute.
        CannotWrite: The disk is full, or something else is in the way.
    """
    _check_open(batches, taste.picks(), parse_said(text))
    added = add_said(taste, batches, text)
    if closes:
        added = [*added, *taste.decide(lambda picks: close(batches, picks))]
    return added


def _check_open(batches: Sequence[Batch], picks: Sequence[Pick], lines: Sequence[Said]) -> None:
    closed = {keys_of(pick) for pick in picks if pick.kind == "done"}
    if all(batch.keys in closed for batch in batches):
        raise AnswerClosed("the answer about these pictures was given already; nothing was added")
    numbers = {
        (shown.index or 0) + 1 for batch in batches if batch.keys in closed for shown in batch.shown
    }
    for line in lines:
        if named := numbers & set(line.pictures):
            raise AnswerClosed(
                f"{line.where}: the answer about picture {min(named)} was given already; nothing "
                "was added"
            )


def asked_batches(taste: Taste) -> list[Batch]:
    """What a training asks about now, or asked about when it was killed.

    Raises:
        FileNotFoundError: Nothing is asked.
        ValueError: The file that says so is damaged.
    """
    file = taste.folder / ASKED_FILE
    if not file.is_file():
        raise FileNotFoundError(f"no training asks about pictures of {taste.folder} now")
    row = parse_json(read_regular(file))
    ids = row.get("batches") if isinstance(row, dict) else None
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise ValueError(f"{file} is damaged; delete it, and resume the training")
    return [read_batch(taste, one) for one in ids]


def _tell(taste: Taste, batches: Sequence[Batch], kind: str, wanted: int, why: str) -> None:
    assert kind in WAYS
    facts = {"v": 1, "batches": [b.id for b in batches], "kind": kind, "wanted": wanted, "why": why}
    write_whole(taste.folder / ASKED_FILE, json.dumps(facts) + "\n")


def _closed(picks: Sequence[Pick], batches: Sequence[Batch]) -> list[Pick] | None:
    """The picks before the last of the batches was closed; None if one is open."""
    first: dict[object, int] = {}
    for place, pick in enumerate(picks):
        if pick.kind == "done":
            first.setdefault(keys_of(pick), place)
    places = [first.get(batch.keys) for batch in batches]
    if any(place is None for place in places):
        return None
    return list(picks[: max(place for place in places if place is not None)])


def _are_answered(batches: Sequence[Batch], picks: Sequence[Pick]) -> bool:
    marks = Marks(picks)
    return all(_is_complete(batch, marks) for batch in batches)


def _is_complete(batch: Batch, marks: Marks) -> bool:
    """Whether nothing is left to be said: the best is named, or each picture has a mark or stars,
    or no duel is open, or the batch was skipped."""
    return (
        marks.is_skipped(batch)
        or marks.best(batch) is not None
        or all(marks.hearts(batch))
        or all(stars is not None for stars in marks.stars(batch))
        or (bool(marks.duels(batch)) and not open_duels(batch, marks))
    )


def _state(file: Path) -> tuple[int, int, int] | None:
    """What changes whenever something was picked."""
    try:
        facts = file.stat()
    except FileNotFoundError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
