"""Read prompts from text and from .txt, .jsonl and .csv files, each with the place it stood in.

    .txt    one prompt per line; blank lines and lines that begin with # are skipped, and a prompt
            that begins with # is written \\#
    .jsonl  one object per line with the prompt under "prompt" or "caption"
    .csv    a head line with a column "prompt" or "caption"; cells may be quoted

Further keys and columns are kept as metadata. Files are UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["SUFFIXES", "PromptLine", "located", "parse_lines", "read_prompt_file", "read_text"]

_KEYS = ("prompt", "caption")


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """One prompt as it was written."""

    text: str
    where: str
    """For messages: file name and line number, counted from 1."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else a .jsonl or .csv file says about it; the values of .csv are text."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put a place before the message of every ValueError that is raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def read_text(path: Path) -> str:
    """Read a UTF-8 file; a byte order mark is left out, line ends are kept.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8; the message names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no prompt file {path}")
    body = path.read_bytes()
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path.name}, line {line}: not UTF-8 text; save the file as UTF-8"
        ) from error


def parse_lines(text: str, name: str) -> list[PromptLine]:
    """Read one prompt per line, without blank lines and comments.

    Args:
        text: Any line ends.
        name: File or input, for messages.
    """
    lines = []
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            where = f"{name}, line {number}"
            lines.append(PromptLine(text=re.sub(r"^\\#", "#", line), where=where))
    return lines


def read_prompt_file(path: str | Path) -> list[PromptLine]:
    """Read a file by its ending.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has another ending, or a line of it is wrong; the message names the line.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path.name} is no prompt file; it must end in {', '.join(SUFFIXES)}")
    return reader(read_text(path), path.name)


def _parse_jsonl(text: str, name: str) -> list[PromptLine]:
    lines = []
    # Not splitlines: a string in JSON may hold U+2028 and other rare line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        with located(where):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from error
            if not isinstance(row, dict):
                raise ValueError('not an object; write {"prompt": "..."}')
            lines.append(_prompt_line(row, where))
    return lines


def _parse_csv(text: str, name: str) -> list[PromptLine]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines, head, number = [], None, 1
    while True:
        where = f"{name}, line {number}"
        with located(where):
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise ValueError(f"not CSV ({error})") from error
            if cells is None:
                return lines
            if head is None and cells:
                head = _head([cell.strip() for cell in cells])
            elif head is not None and cells:
                if len(cells) != len(head):
                    raise ValueError(
                        f"{len(cells)} cells under {len(head)} columns; put a prompt with commas "
                        'into "double quotes"'
                    )
                lines.append(_prompt_line(dict(zip(head, cells, strict=True)), where))
        number = rows.line_num + 1  # a quoted cell may span lines


def _head(columns: Sequence[str]) -> Sequence[str]:
    if not set(_KEYS) & set(columns):
        raise ValueError(
            f"the columns are {', '.join(map(repr, columns))}; one must be called 'prompt' or "
            "'caption', and commas separate them"
        )
    if len(set(columns)) < len(columns):
        raise ValueError(f"a column is named twice: {', '.join(map(repr, columns))}")
    return columns


def _prompt_line(row: Mapping[str, Any], where: str) -> PromptLine:
    key = next((key for key in _KEYS if key in row), None)
    if key is None:
        raise ValueError(f"no 'prompt' or 'caption' among the keys {', '.join(map(repr, row))}")
    text = row[key]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{key} is {text!r}; it must be a text that is not empty")
    metadata = {name: value for name, value in row.items() if name != key}
    return PromptLine(text=text.strip(), where=where, metadata=metadata)


_READERS = {".txt": parse_lines, ".jsonl": _parse_jsonl, ".csv": _parse_csv}
#: Endings of the files that can be read.
SUFFIXES = tuple(_READERS)
