"""Tables of pairs, .jsonl, .csv or .tsv, with the columns of Pick-a-Pic or plainer ones.

    caption, image_0, image_1, label_0   label_0: 1 the first, 0 the second, 0.5 neither
    caption, chosen, rejected

``prompt`` is another name of ``caption``, which may be left out. Pictures are files, relative to
the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....prompts.decoding import read_text
from ....prompts.tables import jsonl_rows, table_rows
from ....settings.declared import shortened
from .rated import Rated

__all__ = ["ENDINGS", "pairs"]

ENDINGS = (".jsonl", ".csv", ".tsv")
_LABELLED, _CHOSEN = {"image_0", "image_1", "label_0"}, {"chosen", "rejected"}
_EXAMPLE = '{"caption": "...", "image_0": "a.png", "image_1": "b.png", "label_0": 1}'


def pairs(table: Path) -> Iterator[Rated]:
    """All pairs of a table, in order.

    Raises:
        ValueError: A row is something else; the message names its line.
    """
    text = read_text(table)
    ending = table.suffix.lower()
    if ending == ".jsonl":
        rows = jsonl_rows(text, table.name, _EXAMPLE)
    else:
        rows = table_rows(
            text, table.name, _is_head, tabbed=ending == ".tsv", quotes=True, tell=_silent
        )
    for where, row in rows:
        assert not isinstance(row, str)
        yield _pair(row, where, table.parent)


def _is_head(columns: Sequence[str]) -> bool:
    return set(columns) >= _LABELLED or set(columns) >= _CHOSEN


def _silent(sentence: str) -> None:
    """Which separator a table has is no news here."""


def _pair(row: Mapping[str, Any], where: str, folder: Path) -> Rated:
    prompt = row.get("caption", row.get("prompt", ""))
    if not isinstance(prompt, str):
        raise ValueError(f"{where}: caption is {shortened(prompt)}; it must be a text")
    if row.keys() >= _LABELLED:
        first, second = (_file(row, key, where, folder) for key in ("image_0", "image_1"))
        label = _label(row["label_0"], where)
        kind, answer = ("same", None) if label == 0.5 else ("duel", int(label == 0))
        return Rated(kind, (first, second), answer, prompt or None, where)
    if row.keys() >= _CHOSEN:
        files = tuple(_file(row, key, where, folder) for key in ("chosen", "rejected"))
        return Rated("duel", files, 0, prompt or None, where)
    raise ValueError(f"{where}: it has {shortened(sorted(row))}; write {_EXAMPLE}")


def _file(row: Mapping[str, Any], key: str, where: str, folder: Path) -> Path:
    name = row[key]
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"{where}: {key} is {shortened(name)}; it must be the file of a picture")
    return folder / name.strip()


def _label(value: object, where: str) -> float:
    try:
        label = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        label = -1.0
    if isinstance(value, bool) or label not in (0.0, 0.5, 1.0):
        raise ValueError(
            f"{where}: label_0 is {shortened(value)}; it must be 1 (the first is better), 0 or 0.5"
        )
    return label
