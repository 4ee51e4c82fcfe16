"""TOML as text: parsing it, and writing values and comments."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..optional import require
from ..prompts.example import is_unicode

__all__ = ["LONGEST", "comment", "entry", "parse_toml", "read_toml", "toml_list", "toml_value"]

_WIDTH = 96
LONGEST = 64 * 2**20
"""Bytes of a file; 64 MiB hold some hundred thousand prompts."""
_DEEPEST = 32
"""Tables and lists inside each other."""
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"^[ \t\[]*{_PART}(?:[ \t]*\.[ \t]*{_PART}){{{_DEEPEST}}}", re.MULTILINE)
"""A key of so many parts takes the parser a time that grows with their square."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a file.

    Raises:
        ValueError: It is too large, no UTF-8, or no TOML; the message names the file.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    if size > LONGEST:
        raise ValueError(f"{path} has {size:,} bytes; a file of settings has at most {LONGEST:,}")
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML; Python 3.10 needs the package tomli for it.

    Raises:
        ValueError: It is not TOML (the message names line and column), or nested too deeply.
    """
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    toml = require(name, "To read a configuration file")
    too_deep = f"tables and lists are nested too deeply; at most {_DEEPEST} may be in each other"
    if _LONG_KEY.search(text):
        raise ValueError(too_deep)
    try:
        document = toml.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        level = [item for value in level for item in _inside(value)]
        if not level:
            return document
    raise ValueError(too_deep)


def _inside(value: Any) -> list[Any]:
    """The tables and lists directly inside one."""
    values = value.values() if isinstance(value, dict) else value
    return [item for item in values if isinstance(item, (dict, list))]


def toml_value(value: object) -> str:
    """Write a plain value; None becomes the text "none", a number of NumPy a number.

    Raises:
        ValueError: It is nothing that TOML has.
    """
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(entry(str(key), item) for key, item in value.items()) + "}"
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        if not is_unicode(text):
            raise ValueError(f"{value!r:.200} cannot be written as text; it has half a character")
        return text
    if isinstance(value, Integral):
        return repr(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    raise ValueError(
        f"{value!r:.200} cannot be written into a TOML file; give a number, text or list"
    )


def toml_list(values: Sequence[object]) -> str:
    """Write a list with one value on a line."""
    return "\n".join(["[", *(f"  {toml_value(value)}," for value in values), "]"])


def entry(name: str, value: object) -> str:
    """Write one key with its value; a key of other signs than A-Z, digits, _ and - is quoted."""
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
    return f"{key} = {toml_value(value)}"


def comment(text: str, indent: str = "") -> list[str]:
    """Write text as comments; lines after the first are indented."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="# ",
        subsequent_indent=f"# {indent}",
        break_on_hyphens=False,
    )
