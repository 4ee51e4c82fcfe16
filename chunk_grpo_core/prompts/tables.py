"""Cut .json, .jsonl, .csv and .tsv files into rows, each with the place it stood in.

JSON is read strictly: a key twice in one object, NaN, numbers beyond float64 and half characters
(lone surrogates) are refused, because they would be lost or altered on the way to the reward. Cells
of tables stand apart by commas, semicolons, tabs or bars; the head line decides which.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from .decoding import Tell

__all__ = ["json_rows", "jsonl_rows", "table_rows"]

Rows = Iterator[tuple[str, str | Mapping[str, Any]]]

_DEEPEST = 32
"""Lists and objects inside each other in one row."""
_MOST_VALUES = 4_000_000
"""In one file; more would take gigabytes of memory."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def jsonl_rows(text: str, name: str, example: str = '{"prompt": "..."}') -> Rows:
    """One object for each line that is not blank.

    Args:
        text: The file.
        name: What to call it in messages.
        example: How such an object looks, for messages.

    Raises:
        ValueError: A line is something else; the message names it.
    """
    # Not splitlines: a string in JSON may hold U+2028 and other rare line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        row = _parsed(line, where)
        if not isinstance(row, dict):
            raise ValueError(f"{where}: not an object; write {example}")
        yield where, row


def json_rows(text: str, name: str) -> Rows:
    """The entries of a list, strings or objects; or of the list under "prompts".

    Raises:
        ValueError: The file is something else.
    """
    if not text.strip():
        return
    data = _parsed(text, name)
    if isinstance(data, dict) and isinstance(data.get("prompts"), list):
        data = data["prompts"]
    if not isinstance(data, list):
        raise ValueError(
            f'{name}: holds {_kind(data)}; write a list of prompts, ["a cat", "a dog"], or of '
            'objects, [{"prompt": "a cat"}]'
        )
    for number, row in enumerate(data, start=1):
        where = f"{name}, entry {number}"
        if not isinstance(row, (str, dict)):
            raise ValueError(
                f"{where}: {_kind(row)}; it must be a prompt, or an object with a prompt"
            )
        yield where, row


def table_rows(
    text: str,
    name: str,
    is_head: Callable[[Sequence[str]], bool],
    *,
    tabbed: bool,
    quotes: bool,
    tell: Tell,
) -> Rows:
    """Column name -> cell, for each line that is not blank.

    Args:
        text: A head line, then rows.
        name: Of the file.
        is_head: Whether a head line with these columns can be read.
        tabbed: Whether tabs are expected rather than commas.
        quotes: Whether quotes around a cell belong to the table and not to the cell.
        tell: Told if other separators than those were found.

    Raises:
        ValueError: There is no such head line, or a row does not fit to it.
    """
    _check_size(text, name)
    expected = "\t" if tabbed else ","
    try:
        skipped, separator = _separator(text, is_head, expected)
    except ValueError as error:
        raise ValueError(f"{name}, head line: {error}") from error
    if separator != expected:
        tell(f"{name}: cells are separated by {_SEPARATORS.get(separator, repr(separator))}.")
    head: list[str] | None = None
    for line, cells in _cells(text, name, separator, quotes):
        where = f"{name}, line {line}"
        if line <= skipped or not any(cell.strip() for cell in cells):
            continue
        if head is None:
            head = _head(cells, where, is_head)
            continue
        while len(cells) > len(head) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(head):
            raise ValueError(
                f"{where}: {len(cells)} cells under {len(head)} columns; put a prompt with "
                f"{_SEPARATORS.get(separator, repr(separator))} into "
                '"double quotes"'
            )
        row = dict(zip(head, cells, strict=True))
        if unnamed := row.pop("", "").strip():
            raise ValueError(f"{where}: {unnamed!r:.60} stands in a column that has no name")
        yield where, row


def _cells(text: str, name: str, separator: str, quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line of each row, from 1, and its cells."""
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    source = io.StringIO(text, newline="")
    rows = csv.reader(source, strict=True, delimiter=separator, quoting=quoting)
    while True:
        line = rows.line_num + 1  # a quoted cell may span lines
        try:
            yield line, next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{name}, line {line}: not CSV ({error})") from error


def _separator(
    text: str, is_head: Callable[[Sequence[str]], bool], expected: str
) -> tuple[int, str]:
    """How many lines to skip before the head line, and what separates its cells."""
    lines = enumerate(io.StringIO(text, newline=None), start=1)
    number, first = next(((n, line) for n, line in lines if line.strip()), (0, ""))
    if written := re.fullmatch(r'"?sep=(.)"?', first.strip("\n")):
        return number, written[1]  # Excel's own way to say it
    for separator in sorted(_SEPARATORS, key=lambda one: one != expected):
        columns = next(csv.reader([first], delimiter=separator), [])
        if is_head([column.strip() for column in columns]):
            return number - 1, separator
    return number - 1, expected


def _head(cells: Sequence[str], where: str, is_head: Callable[[Sequence[str]], bool]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    shown = ", ".join(f"{column!r:.60}" for column in columns[:12])
    if not is_head(columns):
        raise ValueError(
            f"{where}: the columns are {shown}; one must be called 'prompt' or 'caption', and "
            "commas, semicolons or tabs separate them"
        )
    while columns[-1] == "":  # spreadsheets leave empty columns behind
        columns.pop()
    if len(set(columns)) < len(columns):
        raise ValueError(f"{where}: a column is named twice: {shown}")
    return columns


def _parsed(text: str, where: str) -> Any:
    """JSON, strictly."""
    _check_size(text, where)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"{where}: not JSON ({error.msg}, {line}column {error.colno})") from error
    except RecursionError:
        raise ValueError(f"{where}: lists or objects are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    # A list of rows may be one level deeper than a row.
    if _depth_exceeds(value, _DEEPEST + 2):
        raise ValueError(f"{where}: lists or objects are nested more than {_DEEPEST} deep")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: holds half a character (the lone surrogate "
            rf"\u{ord(error.object[error.start]):04x}); take it out"
        ) from error
    return value


def _check_size(text: str, where: str) -> None:
    if sum(map(text.count, "{[,;\t")) > _MOST_VALUES:
        raise ValueError(f"{where}: holds more than {_MOST_VALUES:,} values; split the file")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {twice!r:.60} stands twice in one object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON; leave the key out, or write null")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.30} is too large")
    return value


def _depth_exceeds(value: object, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return kinds.get(type(value), "null" if value is None else f"{value!r:.40}")
