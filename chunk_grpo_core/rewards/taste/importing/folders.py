"""Folders that say what is in them: ``liked/`` and ``disliked/``, or ``1/`` to ``5/``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .rated import Rated, picture_files

__all__ = ["likes", "stars"]

_LIKED = {"liked": True, "pos": True, "disliked": False, "neg": False}
_NUMBER = re.compile(r"-?0*[1-9]\d*")
_STARS = {str(number): number for number in range(1, 6)}


def likes(folder: Path) -> Iterator[Rated]:
    """Pictures below ``liked``, ``disliked``, ``pos`` and ``neg`` (of either case)."""
    for below in _named(folder, _LIKED):
        for file in picture_files(below):
            yield Rated("like", (file,), _LIKED[below.name.lower()], where=str(file))


def stars(folder: Path) -> Iterator[Rated]:
    """Pictures below ``1`` to ``5``; those below ``0`` are not rated.

    Raises:
        ValueError: Another number has pictures, too: nobody knows how many stars it means.
    """
    others = [below for below in folder.iterdir() if _NUMBER.fullmatch(below.name)]
    for below in sorted(others):
        if below.name not in _STARS and below.is_dir() and next(iter(picture_files(below)), None):
            raise ValueError(
                f"{below} holds pictures, and folders of stars are called 1 to 5 (0: not rated); "
                "rename it, or move it away"
            )
    for below in _named(folder, _STARS):
        for file in picture_files(below):
            yield Rated("stars", (file,), _STARS[below.name], where=str(file))


def _named(folder: Path, names: dict) -> list[Path]:
    return [below for below in sorted(folder.iterdir()) if below.name.lower() in names
            and below.is_dir()]  # fmt: skip
