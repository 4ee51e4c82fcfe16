"""Where a command writes to, looked at before it works for minutes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["file_to_write", "folder_to_write"]


def folder_to_write(out: Path, name: str = "--out") -> Path:
    """The folder of an option, or of the argument ``name``; it need not exist.

    Raises:
        ValueError: It is a file, or below one.
    """
    _no_file(out, (out, *out.parents), name)
    return out


def file_to_write(out: Path, name: str = "--out") -> Path:
    """The file of an option, or of the argument ``name``; it need not exist.

    Raises:
        ValueError: It is a folder, or below a file.
    """
    if out.is_dir():
        raise ValueError(f"{name} {out} is a folder; name a file in it")
    _no_file(out, out.parents, name)
    return out


def _no_file(out: Path, folders: Iterable[Path], name: str) -> None:
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{name} {out} cannot be: {folder} is a file; name another one")
