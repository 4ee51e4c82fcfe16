"""A run that failed before its first iteration was done: what it wrote is of no use to anybody."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..disk.lock import LOCK_FILE
from ..method.cancel import Cancelled
from .folder import RunFolder

__all__ = ["drop_unbegun", "dropped_if_unbegun"]


@contextmanager
def dropped_if_unbegun(folder: RunFolder) -> Iterator[None]:
    """Leave no run behind that fails in this context before its first iteration is done. One that
    is cancelled can be resumed, and stays."""
    try:
        yield
    except Cancelled:
        raise
    except Exception:
        drop_unbegun(folder)
        raise


def drop_unbegun(folder: RunFolder) -> bool:
    """Take away what a new run has written, if no iteration of it is done.

    A folder that holds anything else, whoever put it there, stays as it is.

    Args:
        folder: Nobody else writes to it. It stays itself, as the lock in it does.

    Returns:
        Whether nothing of the run is left.
    """
    made = [folder.run_file, folder.held_out_file, folder.group, folder.samples, folder.plots]
    made += [folder.metrics_file, folder.path / "checkpoints"]
    if _holds_something(folder.metrics_file) or _holds_something(folder.path / "checkpoints"):
        return False
    if set(folder.path.iterdir()) - {*made, folder.path / LOCK_FILE}:
        return False
    for path in made:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return True


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0
