"""tools/locales.py as a module, and the files that it writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_spec = importlib.util.spec_from_file_location("locales_tool", ROOT / "tools" / "locales.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

FILES = ("main.json", "nodeDefs.json")


def files(language):
    """The two files of a language as one tree."""
    tree = {}
    for name in FILES:
        tree |= tool.read(tool.LOCALES / language / name)
    return tree


def texts(language):
    """Dotted path -> text."""
    return dict(tool.texts_of(files(language)))
