"""One process at a time in a folder.

The lock belongs to the system: it goes when the process that holds it ends, however it ends, so
that no lock is ever stale. The file only says who holds it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .atomic import writing

__all__ = ["LOCK_FILE", "FolderLock", "InUse", "locked"]

log = logging.getLogger(__name__)

LOCK_FILE = "lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What network file systems without locks answer."""
_BEHIND = 1 << 30
"""On Windows the place of the locked byte, far behind what is to be read."""
_PAUSE = 0.005
"""Seconds between two tries to take it."""
_MOMENT = 2.0
"""Seconds given to who has just taken a lock to write down who it is."""


class InUse(Exception):
    """Another process, or another part of this one, holds the lock; the text says who."""


@dataclass(frozen=True)
class FolderLock:
    """A lock that is held."""

    file: Path
    handle: int
    """Its descriptor."""

    def is_in_place(self) -> bool:
        """Whether the folder is still where it was: neither moved, deleted nor replaced."""
        try:
            return os.path.samestat(os.fstat(self.handle), os.stat(self.file))
        except FileNotFoundError:
            return False


@contextmanager
def locked(folder: Path, *, wait: float = 0.0) -> Iterator[FolderLock]:
    """Hold the lock of a folder, which must be there, for as long as the block lasts.

    A file system without locks (some network drives) gets a warning instead.

    Args:
        folder: It gets a file ``lock``.
        wait: Seconds to wait for somebody who holds it.

    Raises:
        InUse: Somebody holds it.
        CannotWrite: The lock's file cannot be made.
    """
    file = folder / LOCK_FILE
    lock = _take(file, time.monotonic() + wait)
    try:
        yield lock
    finally:
        _release(lock)


def _take(file: Path, deadline: float) -> FolderLock:
    while True:
        with writing(file):
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        lock = FolderLock(file, handle)
        try:
            _lock(handle)
            if not lock.is_in_place():  # whoever held it before has just deleted the file
                os.close(handle)
                continue
            owner = _owner(handle)
            with writing(file):
                os.ftruncate(handle, 0)
                _write(handle, owner)
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() < deadline:
                time.sleep(_PAUSE)
                continue
            raise InUse(_holder(file)) from None
        except BaseException:
            os.close(handle)
            raise
        return lock


def _release(lock: FolderLock) -> None:
    if os.name == "posix":  # while it is held, so that nobody loses a lock that he has just taken
        if lock.is_in_place():
            lock.file.unlink(missing_ok=True)
        os.close(lock.handle)
    else:  # an open file cannot be deleted there, and neither can one that somebody else has opened
        os.close(lock.handle)
        with suppress(OSError):
            lock.file.unlink(missing_ok=True)


def _lock(handle: int) -> None:
    """Raises BlockingIOError if somebody has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, _BEHIND, os.SEEK_SET)
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            except PermissionError as error:
                raise BlockingIOError from error
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning(
            "the file system here has no locks (%s): nothing keeps a second training out of this "
            "folder, so start only one",
            error.strerror,
        )


def _owner(handle: int) -> bytes:
    owner = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "file": os.fstat(handle).st_ino,
    }
    return json.dumps(owner).encode()


def _write(handle: int, body: bytes) -> None:
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, body)


def _holder(file: Path) -> str:
    """Who holds it, as the file says once it is up to date."""
    deadline = time.monotonic() + _MOMENT
    while True:
        is_last = time.monotonic() > deadline
        try:
            owner = json.loads(file.read_bytes())
            if is_last or not _is_left_behind(owner, file):
                return f"process {owner['process']} on {owner['host']} since {owner['since']}"
        except FileNotFoundError:  # gone by now
            return "another process"
        except (OSError, ValueError, LookupError, TypeError):  # being written
            if is_last:
                return "another process"
        time.sleep(0.01)


def _is_left_behind(owner: dict[str, Any], file: Path) -> bool:
    """Whether the text is of an earlier holder that was killed, or was copied with its folder.

    Whoever has just taken the lock has not yet replaced it.
    """
    if owner["file"] != file.stat().st_ino:
        return True
    if os.name != "posix" or owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["process"], 0)  # only asks; on Windows it would end the process
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        return False
    return False
