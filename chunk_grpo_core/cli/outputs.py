"""Where a command writes to, looked at before it works for minutes."""

from __future__ import annotations

from pathlib import Path

__all__ = ["file_to_write", "folder_to_write"]


def folder_to_write(out: Path) -> Path:
    """The folder of ``--out``; it need not exist.

    Raises:
        ValueError: It is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder")
    return out


def file_to_write(out: Path) -> Path:
    """The file of ``--out``; it need not exist.

    Raises:
        ValueError: It is a folder.
    """
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it")
    return out
