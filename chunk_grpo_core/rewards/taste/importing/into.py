"""Put ratings from elsewhere into a taste: all of them, or none if anything is wrong.

An import can be repeated: what is there already is left alone, and a rating that was changed takes
the place of the old one. The same picture counts once, by its pixels and by its look.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ....prompts.decoding import read_text
from ....settings.declared import shortened
from ...picture_files import load_picture, unpacked
from ..events import Pick, Shown, counting, new_pick
from ..picks import Taste, pixel_hash
from . import folders, majoor, notes, pairs
from .comfy_graph import graph_of, prompt_and_seed
from .comfy_noise import made_in
from .near import Seen, look_of
from .rated import Rated, Unreadable

__all__ = ["FORMS", "Imported", "import_into", "listed"]

_MARK = "import-"
_MOST_NAMED = 10
FORMS: dict[str, str] = {
    "likes": "folders liked and disliked (or pos and neg)",
    "stars": "folders 1 to 5",
    "ratings": "XMP and EXIF ratings of all pictures below a folder",
    "majoor": "the index of Majoor AssetsManager, or the folder that holds it",
    "pairs": "a .jsonl, .csv or .tsv file of pairs",
}
"""Form -> what it reads."""


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    form: str
    picks: int
    """That were added."""
    kinds: dict[str, int]
    present: int
    """That were there already."""
    changed: int
    """That took the place of an older one."""
    same_pixels: int
    """Left out: the picture was rated alike under another name."""
    same_look: int
    """Left out: a picture that looks the same was rated alike."""
    missing: int
    """Left out: their files are gone (of an index, which may know more than there is)."""
    unreadable: tuple[str, ...]
    """What is wrong with damaged notes, each with its file. Ratings in them are not known, so their
    pictures are left out; captions in them are, and the pictures count without."""


def import_into(
    taste: Taste,
    source: Path,
    form: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Imported:
    """Import ratings. Damaged notes are told, see :class:`Imported`; anything else that is wrong
    stops the import.

    Args:
        taste: Gets picks, and copies of the pictures.
        source: Folder or file.
        form: A key of :data:`FORMS`; by default what the source looks like.
        progress: Told how many ratings have been read.

    Raises:
        FileNotFoundError: There is no such source, or a picture that a table names is gone.
        ValueError: It holds no ratings, something in it is wrong, or one picture has two different
            ratings; nothing is imported then.
    """
    if not source.exists():
        raise FileNotFoundError(f"there is no {source} to import")
    form = form or _form_of(source)
    counts: Counter[str] = Counter()
    chosen: dict[tuple[str, ...], tuple[Rated, list[Shown]]] = {}
    looks = Seen()
    answers: dict[str, object] = {}
    unreadable: list[str] = []
    for number, rated in enumerate(_ratings(source, form), start=1):
        progress(number)
        if isinstance(rated, Unreadable):
            unreadable.append(rated.why)
            continue
        if form == "majoor" and not rated.files[0].is_file():
            counts["missing"] += 1
            continue
        read = [_read(file, rated, unreadable) for file in rated.files]
        shown = [one for one, _ in read]
        if len(shown) == 2 and shown[0].picture == shown[1].picture:
            raise ValueError(
                f"{rated.where}: both pictures are the same; take it out. Nothing was imported"
            )
        key = _judgement(rated.kind, shown, rated.answer)
        if key in chosen:
            _check_alike(chosen[key][0], rated)
            counts["same_pixels"] += 1
            continue
        if len(read) == 1 and (look := look_of(read[0][1])):
            name = looks.same_as(look)
            if name is not None and answers[name] == rated.answer:
                counts["same_look"] += 1
                continue
            looks.add(look, shown[0].picture)
            answers[shown[0].picture] = rated.answer
        chosen[key] = rated, shown
    if not chosen:
        gone = f"; the files of {counts['missing']} are gone" if counts["missing"] else ""
        damaged = f"; {listed(unreadable)}" if unreadable else ""
        raise ValueError(f"{source} holds no ratings ({FORMS[form]}){gone}{damaged}")
    return _write(taste, form, chosen, counts, unreadable)


def listed(texts: Sequence[str]) -> str:
    """The first of many, and how many more there are."""
    more = f", and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return "; ".join(texts[:_MOST_NAMED]) + more


def _form_of(source: Path) -> str:
    if source.is_file() and source.suffix.lower() in pairs.ENDINGS:
        return "pairs"
    if majoor.majoor_index(source):
        return "majoor"
    if source.is_dir():
        for form, read in (("likes", folders.likes), ("stars", folders.stars)):
            if next(read(source), None):
                return form
        return "ratings"
    raise ValueError(
        f"{source} holds no ratings that are known; give a folder, a .sqlite index, or a table "
        f"({', '.join(pairs.ENDINGS)})"
    )


def _ratings(source: Path, form: str) -> Iterator[Rated | Unreadable]:
    if form not in FORMS:
        raise ValueError(f"the form is {shortened(form)}; it must be one of {', '.join(FORMS)}")
    if form == "pairs":
        if not source.is_file() or source.suffix.lower() not in pairs.ENDINGS:
            raise ValueError(f"{source} is no table; it must end in {', '.join(pairs.ENDINGS)}")
        return pairs.pairs(source)
    if form == "majoor":
        index = majoor.majoor_index(source)
        if index is None:
            raise ValueError(f"{source} holds no {majoor.INDEX}, the index of Majoor")
        return majoor.rated_assets(index)
    if not source.is_dir():
        raise ValueError(f"{source} is no folder; {form} reads {FORMS[form]}")
    readers = {"likes": folders.likes, "stars": folders.stars, "ratings": notes.rated_files}
    return readers[form](source)


def _read(file: Path, rated: Rated, unreadable: list[str]) -> tuple[Shown, Tensor]:
    """A picture, what its notes and the text file beside it say; what is damaged is added."""
    try:
        picture = load_picture(file)
        with open(file, "rb") as opened:
            told: Any = unpacked(opened, file).info
    except (ValueError, FileNotFoundError) as error:
        place = "" if rated.where == str(file) else f"{rated.where}: "
        raise type(error)(f"{place}{error}; nothing was imported") from error
    if str(told.get("prompt", "")).lstrip().startswith("{") and graph_of(told) is None:
        unreadable.append(f"{file}: the graph in it is damaged, so its prompt is not known")
    text, seed = prompt_and_seed(told)
    beside = file.with_suffix(".txt")
    if not text and rated.prompt is None and beside.is_file() and beside.stat().st_size < 2**16:
        try:
            text = read_text(beside, tell=lambda sentence: None).strip()
        except ValueError as error:
            unreadable.append(f"{beside}: {error}")
    made = {"file": file.name, **_made(told)}
    index = 0 if "noise" in made else None
    facts = {"prompt": rated.prompt or text, "seed": seed, "index": index, "made": made}
    return Shown(picture=pixel_hash(picture), **facts), picture


def _made(told: Any) -> dict[str, Any]:
    """What the graph in the notes of a file says of how it was made."""
    nodes = graph_of(told)
    savers = [] if nodes is None else [
        name for name, node in nodes.items() if isinstance(node, dict)
        and isinstance(node.get("inputs"), dict) and "images" in node["inputs"]
    ]  # fmt: skip
    if nodes is None or len(savers) != 1:  # which of them wrote it, nobody knows
        return {}
    return made_in(nodes, savers[0])


def _judgement(kind: str, shown: Sequence[Shown], answer: object) -> tuple[str, ...]:
    """What two ratings have in common that say the same, or cannot both hold.

    Of single pictures the picture. Comparisons may be made again, of another prompt or with another
    result: theirs holds the prompt and who won.
    """
    if len(shown) == 1:
        return kind, shown[0].picture
    names = [f"{one.picture} {one.prompt}" for one in shown]
    return (kind, *sorted(names), names[answer] if isinstance(answer, int) else str(answer))


def _check_alike(first: Rated, second: Rated) -> None:
    """Make sure that a picture which comes twice got the same rating."""
    if first.kind in ("like", "stars") and first.answer != second.answer:
        raise ValueError(
            f"one picture has two ratings: {first.where} ({first.answer}) and {second.where} "
            f"({second.answer}); take one of them out. Nothing was imported"
        )


def _write(
    taste: Taste,
    form: str,
    chosen: dict[tuple[str, ...], tuple[Rated, list[Shown]]],
    counts: Counter[str],
    unreadable: Sequence[str],
) -> Imported:
    earlier: dict[tuple[str, ...], Pick] = {
        _judgement(pick.kind, pick.shown, pick.answer): pick
        for pick in counting(taste.picks())
        if pick.id.startswith(_MARK)
    }
    picks: list[Pick] = []
    for key, (rated, shown) in chosen.items():
        pick = new_pick(rated.kind, shown, rated.answer)
        old = earlier.get(key)
        if old and (old.answer, old.shown) == (pick.answer, pick.shown):
            counts["present"] += 1
            continue
        if old:
            counts["changed"] += 1
            picks.append(new_pick("undo", [], old.id))
        code = f"{key} {rated.answer} {shown} {old.id if old else ''}"
        picks.append(replace(pick, id=_MARK + hashlib.sha256(code.encode()).hexdigest()[:32]))
        for file in rated.files:
            taste.keep(load_picture(file))
    added = [pick for pick in taste.extend(picks) if pick.kind != "undo"]
    kinds = dict(Counter(pick.kind for pick in added))
    names = ("present", "changed", "same_pixels", "same_look", "missing")
    numbers = {name: counts[name] for name in names}
    return Imported(form, len(added), kinds, **numbers, unreadable=tuple(unreadable))
