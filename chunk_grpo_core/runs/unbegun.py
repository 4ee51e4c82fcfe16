"""A run that failed before its first iteration was done: what it wrote is of no use to anybody."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..disk.lock import LOCK_FILE
from ..method.cancel import Cancelled
from .folder import RunFolder

__all__ = ["dropped_if_unbegun"]


@contextmanager
def dropped_if_unbegun(
    folder: RunFolder, cancelled: type[BaseException] = Cancelled
) -> Iterator[None]:
    """Leave nothing behind of a new run that fails in this context before its first iteration is
    done.

    A folder that holds anything else, whoever put it there, stays as it is.

    Args:
        folder: Nobody else writes to it. It stays itself, as the lock in it does.
        cancelled: What a cancel check of this host raises; such a run can be resumed, and stays.
    """
    try:
        yield
    except cancelled:
        raise
    except Exception:
        _drop(folder)
        raise


def _drop(folder: RunFolder) -> None:
    made = [folder.run_file, folder.held_out_file, folder.group, folder.samples, folder.plots]
    made += [folder.metrics_file, folder.path / "checkpoints"]
    if _holds_something(folder.metrics_file) or _holds_something(folder.path / "checkpoints"):
        return
    if set(folder.path.iterdir()) - {*made, folder.path / LOCK_FILE}:
        return
    for path in made:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0
