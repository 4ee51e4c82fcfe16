"""Where a command writes to, looked at before it works for minutes."""

from __future__ import annotations

from pathlib import Path

__all__ = ["file_to_write", "folder_to_write"]


def folder_to_write(out: Path, name: str = "--out") -> Path:
    """The folder of an option, or of the argument ``name``; it need not exist.

    Raises:
        ValueError: It is a file, or below one.
    """
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{name} {out} cannot be a folder: {path} is a file; name another one")
    return out


def file_to_write(out: Path, name: str = "--out") -> Path:
    """The file of an option, or of the argument ``name``; it need not exist.

    Raises:
        ValueError: It is a folder, or below a file.
    """
    if out.is_dir():
        raise ValueError(f"{name} {out} is a folder; name a file in it")
    folder_to_write(out.parent, name)
    return out
