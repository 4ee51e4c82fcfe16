"""Picks as text, for graphs without a page:

    liked: 1, 4         disliked: 2       hearts and crosses
    best: 3                               the best of all pictures with its prompt
    better: 2 > 1 > 5                     duels: 2 against 1, and 1 against 5
    same: 1, 2                            neither is better; of two pictures ``same`` is enough
    stars: 5, 3, , x                      of the first, the second, ...; nothing, or x: rejected
    skip                                  nothing about these pictures
    undo                                  takes back the last pick of the taste

Pictures are counted from 1, in the order of the batch. Lines end where they end, or at a
semicolon. A text counts once for the same pictures, however often the graph runs, and says each
thing once: which picture is best, how two compare, the stars or the heart of a picture. What an
undo in it takes back may be said anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ....settings.declared import shortened
from ..events import Pick
from ..picks import Taste
from .acts import (
    answer_duel,
    choose_best,
    give_stars,
    mark_hearts,
    skip,
    undo_last,
)  # fmt: skip
from .batches import Batch

__all__ = ["WORDS", "Said", "add_said", "parse_said"]

WORDS = ("liked", "disliked", "best", "better", "same", "stars", "skip", "undo")
_ALLOWED = (
    "write lines such as liked: 1, 4 / disliked: 2 / best: 3 / better: 2 > 1 / stars: 5, 3, , 1 / "
    "same / skip / undo"
)
_LONGEST = 10_000


@dataclass(frozen=True)
class Said:
    """One line."""

    word: str
    """One of ``WORDS``."""
    numbers: tuple[int | None, ...]
    """Pictures, from 1; for stars 1 to 5, -1 (rejected) or None (nothing said), by picture."""
    where: str
    """For messages."""

    @property
    def pictures(self) -> tuple[int, ...]:
        """Numbers of the pictures about which something is said by number."""
        if self.word == "stars":
            return tuple(n for n, mark in enumerate(self.numbers, start=1) if mark is not None)
        return tuple(n for n in self.numbers if n is not None)


def parse_said(text: str) -> list[Said]:
    """Read a text; [] for an empty one.

    Raises:
        ValueError: A line is none of those at the top of this file; the message names it.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"picks has {len(text)} characters; at most {_LONGEST} are read")
    lines = [line.strip() for line in re.split(r"[\n;]", text)]
    return [_line(line, f"picks, line {n}") for n, line in enumerate(lines, start=1) if line]


def add_said(taste: Taste, batches: Sequence[Batch], text: str) -> list[Pick]:
    """Add the picks that a text says about batches, once for the same text and batches.

    Args:
        taste: Where.
        batches: Of one batch of pictures; ``Shown.index`` counts through all of them.
        text: See the top of this file.

    Returns:
        The picks that were added.

    Raises:
        ValueError: The text is none, or does not fit to the pictures.
        InUse: See ``Taste.append``.
        CannotWrite: See there.
    """
    lines = parse_said(text)
    if not lines:
        return []
    _check_once(lines, batches)
    plain = "\n".join(f"{line.word} {line.numbers}" for line in lines)
    facts = "\n".join([*(batch.id for batch in batches), plain])
    mark = f"text-{hashlib.sha256(facts.encode()).hexdigest()[:24]}"

    def new(picks: list[Pick]) -> list[Pick]:
        if any(pick.id.startswith(f"{mark}-") for pick in picks):
            return []
        added: list[Pick] = []
        for number, line in enumerate(_hearts_together(lines), start=1):
            made = _picks(line, batches, [*picks, *added])
            added += [replace(pick, id=f"{mark}-{number}-{n}") for n, pick in enumerate(made)]
        return added

    return taste.decide(new)


def _picks(line: Said, batches: Sequence[Batch], picks: Sequence[Pick]) -> list[Pick]:
    if line.word == "undo":
        undone = undo_last(picks)
        if not undone:
            raise ValueError(f"{line.where}: there is no pick to undo")
        return undone
    if line.word == "skip":
        return [pick for batch in batches for pick in skip(batch)]
    count = sum(len(batch.shown) for batch in batches)
    if line.word in ("liked", "stars"):
        if line.word == "stars" and len(line.numbers) > count:
            raise ValueError(
                f"{line.where}: stars for {len(line.numbers)} pictures; there are {count}"
            )
        marks: list[dict[int, int]] = [{} for _ in batches]
        for number, mark in _marked(line):
            place, inside = _place(number, batches, line)
            marks[place][inside] = mark
        change = mark_hearts if line.word == "liked" else give_stars
        pairs = zip(batches, marks, strict=True)
        return [pick for batch, said in pairs if said for pick in change(batch, said, picks)]
    if line.word == "same" and not line.numbers:
        if count != 2:
            raise ValueError(
                f"{line.where}: same alone is for two pictures, and there are {count}; write "
                "same: 1, 2"
            )
        line = replace(line, numbers=(1, 2))
    found = [_place(number, batches, line) for number in line.numbers]
    if len({place for place, _ in found}) > 1:
        raise ValueError(
            f"{line.where}: pictures {', '.join(map(str, line.numbers))} were not made of one "
            "prompt; compare pictures of one prompt"
        )
    batch, places = batches[found[0][0]], [inside for _, inside in found]
    try:
        if line.word == "best":
            return choose_best(batch, places[0], picks)
        answer = None if line.word == "same" else 0
        pairs = list(zip(places, places[1:], strict=False))
        return [pick for pair in pairs for pick in answer_duel(batch, pair, answer)]
    except ValueError as error:
        raise ValueError(f"{line.where}: {error}") from None


def _check_once(lines: Sequence[Said], batches: Sequence[Batch]) -> None:
    """Refuse a text that says a thing twice: whichever counted, the other would be lost."""
    stands: list[Said] = []
    for line in lines:
        if line.word != "undo":
            stands.append(line)
        elif stands:
            stands.pop()
    skips = [line for line in stands if line.word == "skip"]
    if skips and len(stands) > 1:
        raise ValueError(
            f"{skips[0].where}: skip says nothing about these pictures, but there is another line; "
            "leave one of them out"
        )
    first: dict[object, Said] = {}
    for line in stands:
        for thing, words in _things(line, batches):
            if thing in first:
                raise ValueError(f"{line.where}: {words} again, after {first[thing].where}; say "
                                 "each thing once")  # fmt: skip
            first[thing] = line


def _things(line: Said, batches: Sequence[Batch]) -> Iterator[tuple[object, str]]:
    """What a line decides, and in words."""
    if line.word == "best":
        place, _ = _place(line.numbers[0], batches, line)
        yield ("best", place), f"picture {line.numbers[0]} is named the best of its prompt"
    elif line.word == "stars":
        for number in line.pictures:
            yield ("stars", number), f"picture {number} gets stars"
    elif line.word in ("better", "same"):
        numbers = line.numbers or (1, 2)
        for pair in zip(numbers, numbers[1:], strict=False):
            yield frozenset(pair), f"pictures {pair[0]} and {pair[1]} are compared"


def _marked(line: Said) -> list[tuple[int, int]]:
    """(Number, mark) of hearts, where a negative number is a cross, or of stars."""
    if line.word == "stars":
        return [(n, mark) for n, mark in enumerate(line.numbers, start=1) if mark is not None]
    return [(abs(n), 1 if n > 0 else -1) for n in line.numbers if n is not None]


def _place(number: int | None, batches: Sequence[Batch], line: Said) -> tuple[int, int]:
    """Place of a batch, and of a picture in it."""
    for place, batch in enumerate(batches):
        for inside, shown in enumerate(batch.shown):
            if number is not None and shown.index == number - 1:
                return place, inside
    count = sum(len(batch.shown) for batch in batches)
    raise ValueError(
        f"{line.where}: there is no picture {number}; there are {count}, counted from 1"
    )


def _hearts_together(lines: Sequence[Said]) -> list[Said]:
    """liked and disliked as one line, liked, in which crosses are negative."""
    hearts = [line for line in lines if line.word in ("liked", "disliked")]
    if not hearts:
        return list(lines)
    numbers = tuple(
        n if line.word == "liked" else -n for line in hearts for n in line.numbers if n is not None
    )
    twice = [n for n in numbers if numbers.count(n) + numbers.count(-n) > 1]
    if twice:
        raise ValueError(
            f"{hearts[-1].where}: picture {abs(twice[0])} is named twice in liked and disliked"
        )
    one = Said("liked", numbers, hearts[0].where)
    at = lines.index(hearts[0])
    others = [line for line in lines if line not in hearts]
    before = [line for line in lines[:at] if line in others]
    return [*before, one, *others[len(before) :]]


def _line(line: str, where: str) -> Said:
    word, colon, rest = (part.strip() for part in line.partition(":"))
    word = word.lower()
    if word not in WORDS:
        raise ValueError(f"{where} is {shortened(line)}; {_ALLOWED}")
    if word in ("skip", "undo"):
        if rest:
            raise ValueError(f"{where} is {shortened(line)}; {word} stands alone")
        return Said(word, (), where)
    if word == "stars":
        return Said(word, _stars(rest, where), where)
    if word == "same" and not rest:
        return Said(word, (), where)
    numbers = _numbers(rest, ">" if word == "better" else ",", word, where)
    wanted = {"best": 1, "same": 2}.get(word)
    if wanted is not None and len(numbers) != wanted:
        raise ValueError(
            f"{where}: {word} needs {wanted} picture{'s' * (wanted > 1)}, not {len(numbers)}"
        )
    if word == "better" and len(numbers) < 2:
        raise ValueError(f"{where}: better compares pictures; write better: 2 > 1")
    return Said(word, numbers, where)


def _numbers(text: str, between: str, word: str, where: str) -> tuple[int, ...]:
    parts = text.split(between) if between in text or between == ">" else text.split()
    numbers = [part.strip() for part in parts]
    if not all(re.fullmatch(r"[0-9]{1,4}", part) and int(part) for part in numbers) or not numbers:
        example = "2 > 1" if word == "better" else "3" if word == "best" else "1, 4"
        raise ValueError(
            f"{where}: {word} is {shortened(text)}; write numbers of pictures, from 1, such as "
            f"{word}: {example}"
        )
    return tuple(map(int, numbers))


def _stars(text: str, where: str) -> tuple[int | None, ...]:
    known = {"": None, "x": -1, "-1": -1, **{str(n): n for n in range(1, 6)}}
    words = [word.strip().lower() for word in text.split(",")]
    wrong = [word for word in words if word not in known]
    if wrong or not any(words):
        raise ValueError(
            f"{where}: stars is {shortened(text)}; write 1 to 5 for each picture in order, nothing "
            "between the commas where you say nothing, x for a rejected one"
        )
    return tuple(known[word] for word in words)
