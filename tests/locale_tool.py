"""tools/locales.py, and the files that it writes."""

from __future__ import annotations

from tools import locales as tool

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
