"""Write a file under a temporary name, flush it to disk, rename it.

Whoever reads sees the old file or the new one, also after a kill or a power cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["sync_folder", "whole_file", "write_whole"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes ``path`` if the block ends well.

    The folder is made if needed. The temporary file ends in ``.partial``, lies beside ``path`` and
    has the number of the process in its name, so that two processes do not write to the same one.
    If the block fails it is deleted, and ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_whole(path: Path, body: bytes | str) -> None:
    """Write a file in one piece; text as UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_bytes(body.encode("utf-8") if isinstance(body, str) else body)


def sync_folder(folder: Path) -> None:
    """Flush a rename itself; only POSIX systems can (and need to)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
