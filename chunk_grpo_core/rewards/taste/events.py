"""What a person clicked: one line of JSON for each pick, which people can read, too.

kind      shown   answer
duel      2       place of the better one, from 0
same      2       null: neither is better
best      2-64    place of the best one
hearts    2-64    for each picture 1 (liked), 0, or -1 (rejected)
like      1       true or false
stars     1       1 to 5, or -1: rejected
skip      0-64    null
done      1-64    null: nothing more will be said about these pictures, which were asked about
undo      0       id of the pick that does not count any more
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any

from ...settings.declared import shortened

__all__ = [
    "KINDS",
    "MOST_SHOWN",
    "TORCH_CPU",
    "VERSION",
    "Pick",
    "Shown",
    "counting",
    "new_pick",
    "pick_line",
    "pick_of",
    "shown_of",
    "shown_row",
    "standing",
]

VERSION = 1
"""Of the lines."""
TORCH_CPU = "torch-cpu"
"""``made["noise"]`` of a picture whose noise can be drawn again."""
MOST_SHOWN = 64
"""Pictures in one pick."""
KINDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "duel": (2, 2),
        "same": (2, 2),
        "best": (2, MOST_SHOWN),
        "hearts": (2, MOST_SHOWN),
        "like": (1, 1),
        "stars": (1, 1),
        "skip": (0, MOST_SHOWN),
        "done": (1, MOST_SHOWN),
        "undo": (0, 0),
    }
)
"""Kind -> how many pictures it shows, at least and at most."""
_STARS = (-1, 1, 2, 3, 4, 5)
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One picture as it was shown."""

    picture: str
    """SHA-256 of its pixels (``picks.pixel_hash``): files that only differ in their notes are
    one picture."""
    path: str | None = None
    """Its file, relative to the folder of the taste; None: ``pictures/<picture>.png`` there."""
    prompt: str = ""
    """Empty where nobody knows it."""
    seed: int | None = None
    index: int | None = None
    """Its place in the batch that it was made in, from 0."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is known: noise, model, lora, sampler, sigmas, cfg, size, file.

    ``noise`` = :data:`TORCH_CPU`: torch drew the noise that the picture began with on the CPU, for
    a whole batch at once, of which it was the one at ``index``, with ``seed``. Where those are not
    the seed and the place of the picture, ``noise_seed`` and ``noise_index`` are.
    """


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One click; see the table at the top of this file."""

    id: str
    time: str
    """ISO 8601, with the time zone."""
    kind: str
    shown: tuple[Shown, ...]
    answer: Any = None
    ms: int | None = None
    """Milliseconds that the person took."""
    round: int = 0
    """0 before a training, 1 and more at its stops."""

    @property
    def group(self) -> str:
        """What its pictures have in common: their prompt, or else the pictures themselves.

        What has one group is left out together when the head is judged.
        """
        prompts = {picture.prompt for picture in self.shown}
        if len(prompts) == 1 and "" not in prompts:
            return f"prompt {prompts.pop()}"
        return " ".join(sorted({picture.picture for picture in self.shown}))


def new_pick(
    kind: str,
    shown: Sequence[Shown],
    answer: object = None,
    *,
    ms: int | None = None,
    round: int = 0,
) -> Pick:
    """Make a pick with an id of its own and the time of now.

    Raises:
        ValueError: The answer does not fit to the kind, or the number of pictures.
    """
    if isinstance(answer, (list, tuple)):
        answer = list(answer)
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    pick = Pick(
        id=uuid.uuid4().hex, time=now, kind=kind, shown=tuple(shown), answer=answer, ms=ms,
        round=round,
    )  # fmt: skip
    return pick_of(json.loads(pick_line(pick)), "the pick")


def pick_line(pick: Pick) -> str:
    """One line of JSON, without its end; what is not known is left out.

    Raises:
        ValueError: Something in it is no JSON (NaN, for example), or half a character.
    """
    shown = [shown_row(one) for one in pick.shown]
    row = {"v": VERSION, "id": pick.id, "time": pick.time, "kind": pick.kind, "shown": shown}
    row |= {"answer": pick.answer, "round": pick.round}
    row |= {} if pick.ms is None else {"ms": pick.ms}
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        line.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the pick cannot be written as JSON: {error}") from error
    return line


def pick_of(row: Mapping[str, Any], where: str) -> Pick:
    """Check a line that was parsed.

    Args:
        row: The object.
        where: File and line, for messages.

    Raises:
        ValueError: A key is missing, unknown or has a wrong value; the message says which.
    """
    version = row.get("v")
    if version != VERSION or isinstance(version, bool):
        newer = isinstance(version, int) and version > VERSION
        hint = "; it was written by a newer version of Chunk-GRPO" if newer else ""
        raise ValueError(f"{where}: v is {shortened(version)}; it must be {VERSION}{hint}")
    _known(row, ("v", "id", "time", "kind", "shown", "answer", "ms", "round"), where)
    kind = row.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"{where}: kind is {shortened(kind)}; it must be one of {', '.join(KINDS)}"
        )
    if not isinstance(row.get("id"), str) or not _ID.fullmatch(row["id"]):
        raise ValueError(
            f"{where}: id is {shortened(row.get('id'))}; it must be up to 64 letters and digits"
        )
    shown = row.get("shown")
    if not isinstance(shown, list):
        raise ValueError(f"{where}: shown is {shortened(shown)}; it must be a list of pictures")
    pictures = tuple(shown_of(one, f"{where}, picture {n}") for n, one in enumerate(shown, start=1))
    least, most = KINDS[kind]
    if not least <= len(pictures) <= most:
        allowed = str(least) if least == most else f"{least} to {most}"
        raise ValueError(f"{where}: {kind} shows {len(pictures)} pictures; it must be {allowed}")
    return Pick(
        id=row["id"],
        time=_time(row.get("time"), where),
        kind=kind,
        shown=pictures,
        answer=_answer(kind, row.get("answer"), len(pictures), where),
        ms=_whole(row, "ms", where, 0),
        round=_whole(row, "round", where, 0) or 0,
    )


def counting(picks: Iterable[Pick]) -> list[Pick]:
    """The picks that count, in order: not undone, and neither a skip, a done nor an undo."""
    return [pick for pick in standing(picks) if pick.kind not in ("skip", "done")]


def standing(picks: Iterable[Pick]) -> list[Pick]:
    """The picks, skips among them, that were not undone, in order.

    An undo can be undone as well.
    """
    undone: set[str] = set()
    kept: list[Pick] = []
    for pick in reversed(list(picks)):
        if pick.id in undone:
            continue
        if pick.kind == "undo":
            undone.add(pick.answer)
        else:
            kept.append(pick)
    return kept[::-1]


def _known(row: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    if unknown := [key for key in row if key not in keys]:
        raise ValueError(
            f"{where}: the key {shortened(unknown[0])} is unknown; there are {', '.join(keys)}"
        )


def shown_row(shown: Shown) -> dict[str, Any]:
    """A picture as JSON has it; what is not known is left out."""
    row = {
        "picture": shown.picture, "path": shown.path, "prompt": shown.prompt or None,
        "seed": shown.seed, "index": shown.index, "made": dict(shown.made) or None,
    }  # fmt: skip
    return {key: value for key, value in row.items() if value is not None}


def shown_of(row: object, where: str) -> Shown:
    """Check a picture of a line that was parsed; ``where`` and errors: see :func:`pick_of`."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: it is {shortened(row)}; it must be an object")
    _known(row, ("picture", "path", "prompt", "seed", "index", "made"), where)
    picture = row.get("picture")
    if not isinstance(picture, str) or not _HASH.fullmatch(picture):
        raise ValueError(
            f"{where}: picture is {shortened(picture)}; it must be the 64 hexadecimal digits of "
            "its pixels"
        )
    path, prompt, made = row.get("path"), row.get("prompt", ""), row.get("made", {})
    for key, value, kind, name in (
        ("path", path, (str, type(None)), "a text"),
        ("prompt", prompt, str, "a text"),
        ("made", made, dict, "an object"),
    ):
        if not isinstance(value, kind):
            raise ValueError(f"{where}: {key} is {shortened(value)}; it must be {name}")
    return Shown(
        picture=picture,
        path=path,
        prompt=prompt,
        seed=_whole(row, "seed", where),
        index=_whole(row, "index", where, 0),
        made=made,
    )


def _whole(row: Mapping[str, Any], key: str, where: str, least: int | None = None) -> int | None:
    value = row.get(key)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and (not is_whole or (least is not None and value < least)):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{where}: {key} is {shortened(value)}; it must be a whole number{bound}")
    return value


def _time(value: object, where: str) -> str:
    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        moment = None
    if not isinstance(value, str) or moment is None or moment.tzinfo is None:
        raise ValueError(
            f"{where}: time is {shortened(value)}; write it as 2026-11-29T18:00:00+00:00"
        )
    return value


def _answer(kind: str, value: object, count: int, where: str) -> Any:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if kind in ("duel", "best"):
        fits, allowed = is_whole and 0 <= value < count, f"a place from 0 to {count - 1}"  # type: ignore[operator]
    elif kind == "hearts":
        is_list = isinstance(value, list) and len(value) == count
        fits = is_list and all(type(one) is int and one in (-1, 0, 1) for one in value)  # type: ignore[union-attr]
        allowed = f"a list of {count} numbers, each 1, 0 or -1"
    elif kind == "like":
        fits, allowed = isinstance(value, bool), "true or false"
    elif kind == "stars":
        fits, allowed = is_whole and value in _STARS, f"one of {', '.join(map(str, _STARS))}"
    elif kind == "undo":
        fits = isinstance(value, str) and _ID.fullmatch(value) is not None
        allowed = "the id of a pick"
    else:
        fits, allowed = value is None, "null"
    if not fits:
        raise ValueError(
            f"{where}: the answer of {kind} is {shortened(value)}; it must be {allowed}"
        )
    return value
