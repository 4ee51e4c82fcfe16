"""Write a file under a temporary name, flush it to disk, rename it.

Whoever reads sees the old file or the new one, also after a kill or a power cut. What cannot be
written is told by path and remedy.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "PARTIAL",
    "CannotWrite",
    "append_line",
    "remove_partial",
    "sync_folder",
    "whole_file",
    "whole_folder",
    "write_whole",
    "writing",
]

PARTIAL = ".partial"
"""How the name of everything ends that is not whole yet."""
_REASONS = {
    errno.ENOSPC: "no space is left on this disk; free some",
    errno.EDQUOT: "your disk quota is used up; free some space",
    errno.EROFS: "this disk is read-only; make it writable",
    errno.EACCES: "permission denied; make the folder and its files yours to write",
    errno.EPERM: "permission denied; make the folder and its files yours to write",
    errno.EFBIG: "the file is too large for this disk or your limits; raise the limit",
    errno.EISDIR: "a folder is in the way; rename it, or delete it",
    errno.ELOOP: "a link that leads nowhere is in the way; delete it",
    errno.EIO: "the disk reports an error (input/output); check it",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter one",
}
"""Number of an error of the system -> what happened, and what to do."""


class CannotWrite(OSError):
    """A file cannot be written; the message names it and says what to do.

    ``errno`` and ``filename`` are those of the error of the system.
    """

    def __str__(self) -> str:
        reason = _REASONS.get(self.errno or 0) or f"{self.strerror}"
        return f"cannot write {self.filename}: {reason}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the system into such that name the file that was to be written.

    Raises:
        CannotWrite: See there.
    """
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        if error.errno is None:  # one with a message of its own
            raise
        raise CannotWrite(error.errno, error.strerror, str(path)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes ``path`` if the block ends well.

    The folder is made if needed. The temporary file ends in ``.partial``, lies beside ``path`` and
    has the number of the process in its name, so that two processes do not write to the same one.
    If the block fails it is deleted, and ``path`` stays as it was.

    Raises:
        CannotWrite: The disk is full, or something else is in the way.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_whole(path: Path, body: bytes | str) -> None:
    """Write a file in one piece; text as UTF-8. Errors: see :func:`whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(body.encode("utf-8") if isinstance(body, str) else body)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder of files: give a temporary one, which becomes ``path``.

    The folder above must be there. What was at ``path`` is replaced. The files in it must be
    flushed by whoever writes them.

    Raises:
        CannotWrite: See :func:`whole_file`.
    """
    temporary = path.with_name(f"{path.name}{PARTIAL}")
    with writing(path):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to the end of a text file and flush it; a kill may leave half of it.

    Raises:
        CannotWrite: See :func:`whole_file`.
    """
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())


def remove_partial(folder: Path) -> None:
    """Delete what a killed process left half written in a folder; nobody may write there now."""
    for path in [*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*/*{PARTIAL}")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a rename itself; only POSIX systems can (and need to)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
