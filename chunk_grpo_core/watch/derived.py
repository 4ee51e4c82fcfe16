"""Files that are derived from a run: whatever happens to them, the run goes on."""

from __future__ import annotations

import logging
from pathlib import Path

from ..train.events import Event, Listener

__all__ = ["derived", "make_way", "put_aside"]

log = logging.getLogger(__name__)


def derived(listener: Listener) -> Listener:
    """Make a listener that passes every event on, and only warns when its file cannot be written.

    The run itself ends when a checkpoint cannot be written, with the same disk.

    Args:
        listener: Writes a file that can be derived again, or done without.
    """
    told: set[str] = set()

    def listen(event: Event) -> None:
        try:
            listener(event)
        except OSError as error:
            if str(error) not in told:  # once, not in every iteration
                log.warning("%s. The training goes on without it", error)
            told.add(str(error))

    return listen


def put_aside(path: Path, reason: str) -> None:
    """Give a damaged file another name, so that it can be written anew and still be looked at."""
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    log.warning("%s is damaged (%s); it is now %s, and is written anew", path, reason, aside.name)


def make_way(path: Path) -> None:
    """Put a folder aside that lies where a file of the run is to be written."""
    if path.is_dir():
        put_aside(path, "it is a folder")
