"""TOML as text: parsing it, and writing values and comments."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
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
    try:
        return require(name, "To read a configuration file").loads(text)
    except RecursionError:
        raise ValueError("brackets are nested too deeply; settings need three levels") from None


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
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Integral):
        return repr(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    raise ValueError(f"{value!r} cannot be written into a TOML file; give a number, text or list")


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
