"""Read prompts from text and from files, each with the place it stood in.

    .txt          one prompt per line; blank lines and lines that begin with # are skipped, and a
                  prompt that begins with # is written \\#
    .jsonl        one object per line, with the prompt under a key
    .json         a list of prompts, or of such objects; or an object whose "prompts" is that list
    .csv, .tsv    a head line that names the columns, one of them the prompt's

The prompt is under the first of :data:`KEYS` that the first object, or the head line, has; capitals
do not count, and spaces and hyphens are underscores. Further keys and columns are metadata.
``decoding.py`` says which encodings are read, ``tables.py`` how tables are cut into cells.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .decoding import Tell, read_text, tell_log
from .tables import json_rows, jsonl_rows, table_rows

__all__ = [
    "KEYS",
    "LONGEST_PROMPT",
    "MOST_PROMPTS",
    "SUFFIXES",
    "PromptLine",
    "checked_prompt",
    "located",
    "parse_lines",
    "prompt_key",
    "read_prompt_file",
]

KEYS = (
    "prompt",
    "caption",
    "text",
    "prompts",
    "captions",
    "texts",
    "prompt_en",
    "caption_en",
    "text_en",
    "positive_prompt",
    "positive",
    "description",
)
"""Names of the key or column that holds the prompt; the first of them wins."""

LONGEST_PROMPT = 50_000
"""Characters."""
MOST_PROMPTS = 500_000
"""In one file or text."""
_MOST_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """One prompt as it was written."""

    text: str
    where: str
    """For messages: file name and line or entry, counted from 1."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else a file says about it; the values of .csv and .tsv are text."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put a place before the message of every ValueError that is raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def parse_lines(text: str, name: str) -> list[PromptLine]:
    """Read one prompt per line, without blank lines and comments.

    Args:
        text: Any line ends.
        name: File or input, for messages.

    Raises:
        ValueError: A prompt is too long or holds the character NUL, or there are too many.
    """
    lines = []
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            where = f"{name}, line {number}"
            with located(where):
                lines.append(
                    PromptLine(text=checked_prompt(re.sub(r"^\\#", "#", line)), where=where)
                )
                _check_count(lines)
    return lines


def read_prompt_file(path: str | Path, tell: Tell = tell_log) -> list[PromptLine]:
    """Read a file by its ending.

    Args:
        path: See the top of this file.
        tell: Told which encoding, key, column or separator was taken, where the file leaves it
            open.

    Returns:
        One prompt or more.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has another ending, holds no prompts, or a line of it is wrong; the message
            names the line.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is no prompt file; it must end in {', '.join(SUFFIXES)}")
    text, name = read_text(path, tell), path.name
    if path.suffix.lower() == ".txt":
        lines, reason = parse_lines(text, name), "all of its lines are blank or comments (#)"
    else:
        lines, reason = _read_rows(text, name, tell), "there is no entry in it"
    if not lines:
        raise ValueError(f"{name} holds no prompts: {reason if text.strip() else 'it is empty'}")
    return lines


def _read_rows(text: str, name: str, tell: Tell) -> list[PromptLine]:
    if name.lower().endswith(".jsonl"):
        return _prompt_lines(jsonl_rows(text, name), name, tell)
    if name.lower().endswith(".json"):
        return _prompt_lines(json_rows(text, name), name, tell)
    is_tabbed = name.lower().endswith(".tsv")

    def is_head(columns: Sequence[str]) -> bool:
        return prompt_key(columns) is not None

    def read(quotes: bool) -> list[PromptLine]:
        guesses: list[str] = []
        rows = table_rows(text, name, is_head, tabbed=is_tabbed, quotes=quotes, tell=guesses.append)
        lines = _prompt_lines(rows, name, guesses.append)
        if not quotes:
            guesses.append(f"{name}: quotes are read as characters of the prompts.")
        for guess in guesses:
            tell(guess)
        return lines

    try:
        return read(quotes=True)
    except ValueError as error:
        if not is_tabbed:
            raise
        # Cells between tabs need no quotes, and many programs write none.
        try:
            return read(quotes=False)
        except ValueError:
            raise error from None


SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv")
"""Endings of the files that can be read."""


def prompt_key(names: Iterable[str]) -> str | None:
    """Which of several names is that of the prompt, by :data:`KEYS`; None if none is.

    Raises:
        ValueError: Two names differ in capitals only.
    """
    names = list(names)
    for key in KEYS:
        if key in names:
            return key
        alike = [n for n in names if re.sub(r"[\s-]+", "_", n.strip().casefold()) == key]
        if len(alike) > 1:
            raise ValueError(
                f"the prompt may be under {' or '.join(map(repr, alike))}; rename one of them"
            )
        if alike:
            return alike[0]
    return None


def _prompt_lines(
    rows: Iterable[tuple[str, str | Mapping[str, Any]]], name: str, tell: Tell
) -> list[PromptLine]:
    """Rows with their places -> prompts; the first object decides on the key of all."""
    lines: list[PromptLine] = []
    key = None
    for where, row in rows:
        with located(where):
            if isinstance(row, str):
                lines.append(PromptLine(text=_checked_text(row, "the prompt"), where=where))
            else:
                if key is None:
                    key = _chosen_key(row, name, tell)
                if key not in row:
                    raise ValueError(
                        f"no {key!r} among the keys {_shown(row)}, but the first entry of the file "
                        "has its prompt there"
                    )
                text = _checked_text(row[key], key)
                metadata = {other: value for other, value in row.items() if other != key}
                lines.append(PromptLine(text=text, where=where, metadata=metadata))
            _check_count(lines)
    return lines


def _chosen_key(row: Mapping[str, Any], name: str, tell: Tell) -> str:
    key = prompt_key(row)
    if key is None:
        raise ValueError(
            f"no prompt among the keys {_shown(row)}; it must be called 'prompt' or 'caption' (or "
            f"{', '.join(KEYS[2:])})"
        )
    if key != KEYS[0]:
        tell(f"{name}: prompts are read from {key!r}.")
    return key


def _shown(names: Iterable[str]) -> str:
    quoted = [f"{name!r:.60}" for name in names]
    more = len(quoted) - _MOST_SHOWN
    return ", ".join(quoted[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _checked_text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is {value!r:.100}; it must be a text that is not empty")
    return checked_prompt(value.strip())


def checked_prompt(text: str) -> str:
    """Return the text as it is.

    Raises:
        ValueError: It is too long, or holds the character NUL.
    """
    if len(text) > LONGEST_PROMPT:
        raise ValueError(
            f"a prompt of {len(text):,} characters; at most {LONGEST_PROMPT:,} are read"
        )
    if "\0" in text:
        raise ValueError("the prompt holds the character NUL; take it out")
    return text


def _check_count(lines: Sequence[PromptLine]) -> None:
    if len(lines) > MOST_PROMPTS:
        raise ValueError(f"more than {MOST_PROMPTS:,} prompts; split the file, or take a part")
