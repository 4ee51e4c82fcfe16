"""Names from anybody: a path that a workflow or a request names stays inside its folder."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

__all__ = ["path_inside", "safe_name"]

_LONGEST_NAME = 80
_LONGEST_BYTES = 200
"""Room is left for endings, below the 255 bytes of most file systems."""
_LONGEST_PATH = 400
# Windows refuses these whatever their ending.
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[\d\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)


def safe_name(name: str) -> str:
    """Accept a name that is one file or folder name on every system.

    Raises:
        ValueError: It is not; nothing is replaced, because two names could become the same folder.
    """
    name = name.strip()
    is_plain = re.fullmatch(r"\w[\w .+-]*", name) is not None and not name.endswith(".")
    fits = len(name) <= _LONGEST_NAME and len(name.encode("utf-8", "replace")) <= _LONGEST_BYTES
    if not is_plain or not fits or _RESERVED.fullmatch(name):
        raise ValueError(
            f"{_shown(name)} cannot be a file name: use up to {_LONGEST_NAME} letters, digits, "
            f"spaces and _ - + . beginning with a letter or digit (at most {_LONGEST_BYTES} bytes)"
        )
    return name


def path_inside(name: str, folder: str | Path, what: str, *, links: bool = False) -> Path:
    """The path ``name`` below a folder; it need not exist.

    Args:
        name: Relative path, with slashes or backslashes.
        folder: Where it must stay.
        what: The folder as users know it, for messages.
        links: Whether links on the disk may lead out of the folder.

    Raises:
        ValueError: ``name`` is empty, absolute, too long, holds control characters, leads upwards,
            or leads out of the folder through a link.
    """
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    segments = re.split(r"[/\\]", name)
    if absolute or not name.strip() or ".." in segments or not name.isprintable():
        raise ValueError(
            f"{_shown(name)} is outside {what}; it must be a path inside {what}, without '..'"
        )
    if len(name) > _LONGEST_PATH or any(len(part.encode()) > 255 for part in segments):
        raise ValueError(f"{_shown(name)} is too long for a path")
    path = Path(folder, *segments)
    if not links and not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(
            f"{_shown(name)} leads out of {what} through a link; copy what it leads to into it"
        )
    return path


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")
