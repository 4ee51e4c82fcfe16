"""TOML as text: parsing it, and writing values and comments."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..optional import require

__all__ = ["comment", "entry", "parse_toml", "toml_list", "toml_value"]

_WIDTH = 96


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML; Python 3.10 needs the package tomli for it.

    Raises:
        ValueError: It is not TOML; the message names line and column.
    """
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    return require(name, "To read a configuration file").loads(text)


def toml_value(value: object) -> str:
    """Write a plain value; None becomes the text "none"."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        entries = (f"{json.dumps(key)} = {toml_value(item)}" for key, item in value.items())
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def toml_list(values: Sequence[object]) -> str:
    """Write a list with one value on a line."""
    return "\n".join(["[", *(f"  {toml_value(value)}," for value in values), "]"])


def entry(name: str, value: object) -> str:
    """Write one key with its value."""
    return f"{name} = {toml_value(value)}"


def comment(text: str, indent: str = "") -> list[str]:
    """Write text as comments; lines after the first are indented."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="# ",
        subsequent_indent=f"# {indent}",
        break_on_hyphens=False,
    )
