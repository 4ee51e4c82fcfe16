"""What every form of ratings is read into: pictures by file, and what was said about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Rated", "Unreadable", "picture_files"]

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"}
_MOST = 100_000
"""Pictures in one import."""


@dataclass(frozen=True)
class Rated:
    """One rating: a like, stars, or a pair."""

    kind: str
    """``like``, ``stars``, ``duel`` or ``same``; see ``events.py``."""
    files: tuple[Path, ...]
    answer: object
    prompt: str | None = None
    """None: what the files themselves say."""
    where: str = ""
    """Where it was read, for messages."""


@dataclass(frozen=True)
class Unreadable:
    """Notes that are damaged, so that nobody knows whether they hold a rating.

    Their picture is left out and told, and everything else is imported.
    """

    why: str
    """Names the file, and says what is wrong with it."""


def picture_files(folder: Path) -> Iterator[Path]:
    """All picture files below a folder, by name; links to folders are not followed.

    Raises:
        ValueError: There are more than 100,000.
    """
    count = 0
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in _ENDINGS and file.is_file():
            count += 1
            if count > _MOST:
                raise ValueError(f"{folder} holds more than {_MOST:,} pictures; import a part")
            yield file
