"""Where everything of a run lies on disk.

    run.toml                 the record: settings, what was loaded, what changed (``record.py``)
    checkpoints/             see ``train/checkpoint.py``
    metrics.jsonl            one row for each iteration (``watch/history.py``)
    held_out.jsonl           one row for each measurement (``watch/history.py``)
    group/                   the newest group that was scored (``watch/newest_group.py``)
    samples/                 a sampled group now and then (``watch/pictures.py``)
    evaluation.json          held-out scores before and after (``experiment.py``)
    plots/  lora.safetensors (``results.py``)
    lock                     who trains here; only there meanwhile (``disk/lock.py``)

``run.toml`` and the checkpoints are the run; everything else is derived from it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..configfile.record import RUN_FILE, read_record
from ..disk.atomic import remove_partial, writing
from ..disk.lock import FolderLock, InUse, locked
from ..processes.collective import Processes
from ..train.checkpoint import Checkpoints
from ..watch.history import HELD_OUT_FILE

__all__ = ["LockedRunFolder", "RunFolder", "locked_run", "numbered_folder"]


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path
    """The folder; a text is taken, too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def run_file(self) -> Path:
        """The record."""
        return self.path / RUN_FILE

    @property
    def checkpoints(self) -> Checkpoints:
        """Its checkpoints; those of another run that lie there are not taken."""
        return self.checkpoints_of(read_record(self.path).id if self.holds_a_run else "")

    def checkpoints_of(self, run_id: str) -> Checkpoints:
        """Those of a run whose record may not be written yet."""
        return Checkpoints(self.path / "checkpoints", run_id, self.check_in_place)

    @property
    def metrics_file(self) -> Path:
        """Rows of iterations."""
        return self.path / "metrics.jsonl"

    @property
    def held_out_file(self) -> Path:
        """Rows of measurements."""
        return self.path / HELD_OUT_FILE

    @property
    def evaluation_file(self) -> Path:
        """Held-out scores before and after."""
        return self.path / "evaluation.json"

    @property
    def lora_file(self) -> Path:
        """The LoRA of a finished run."""
        return self.path / "lora.safetensors"

    @property
    def group(self) -> Path:
        """Folder of the newest group."""
        return self.path / "group"

    @property
    def samples(self) -> Path:
        """Folder of sampled groups."""
        return self.path / "samples"

    @property
    def plots(self) -> Path:
        """Folder of plots."""
        return self.path / "plots"

    @property
    def holds_a_run(self) -> bool:
        """Whether there is a record."""
        return self.run_file.is_file()

    def check_free(self) -> None:
        """Make sure that a new run can be kept here.

        Raises:
            FileExistsError: There is a run, or checkpoints that another one left.
        """
        if self.holds_a_run:
            raise FileExistsError(
                f"{self.path} already holds a run; resume it, or choose another folder"
            )
        if self.checkpoints.all():
            raise FileExistsError(
                f"{self.path} holds checkpoints of another run, whose {RUN_FILE} is missing; "
                "choose another folder, or delete them"
            )

    def check_in_place(self) -> None:
        """Make sure that this is still the folder in which the run began, which only the lock
        knows."""

    def check_holds_a_run(self) -> None:
        """Make sure that there is something to resume.

        Raises:
            FileNotFoundError: There is no run here.
        """
        if not self.holds_a_run:
            raise FileNotFoundError(f"{self.path} holds no run: {RUN_FILE} is missing")

    @contextmanager
    def locked(self, *, goes_on: bool) -> Iterator[LockedRunFolder]:
        """Keep everybody else from training here for as long as the block lasts.

        A folder that is new and in which nothing has been written is removed again in the end.

        Args:
            goes_on: Whether the run in it goes on; otherwise a new one begins.

        Raises:
            FileExistsError: Somebody trains here, or see :meth:`check_free`.
            FileNotFoundError: There is no run to go on with.
            CannotWrite: The folder, or the file of the lock, cannot be made.
        """
        if goes_on:
            self.check_holds_a_run()
        is_new = not self.path.exists()
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            made = self.path.stat()
        try:
            with locked(self.path) as lock:
                if goes_on:
                    self.check_holds_a_run()
                else:
                    self.check_free()
                remove_partial(self.path)
                yield LockedRunFolder(self.path, lock)
        except InUse as error:
            raise FileExistsError(
                f"the run folder {self.path} is being trained by {error}; stop it, or choose "
                "another folder"
            ) from error
        finally:
            if is_new:
                _remove_empty(self.path, made)


@dataclass(frozen=True)
class LockedRunFolder(RunFolder):
    """A run folder that nobody else writes to."""

    lock: FolderLock

    @contextmanager
    def locked(self, *, goes_on: bool) -> Iterator[LockedRunFolder]:
        """It is locked already. Errors about its content: see :class:`RunFolder`."""
        if goes_on:
            self.check_holds_a_run()
        else:
            self.check_free()
        yield self

    def check_in_place(self) -> None:
        """Make sure that this is still the folder in which the run began.

        Raises:
            FileNotFoundError: It was moved or deleted; the message says what to do.
        """
        if not self.lock.is_in_place():
            raise FileNotFoundError(
                f"the run folder {self.path} was moved or deleted while it was being trained; "
                "nothing more is written. If it was moved, resume it at its new place"
            )


@contextmanager
def locked_run(folder: RunFolder, processes: Processes, *, goes_on: bool) -> Iterator[RunFolder]:
    """:meth:`RunFolder.locked` in the first process, which alone has a folder, for all of them."""
    with ExitStack() as stack:
        of_process = folder

        def lock() -> None:
            nonlocal of_process
            of_process = stack.enter_context(folder.locked(goes_on=goes_on))

        processes.from_writer(lock)
        yield of_process


@contextmanager
def numbered_folder(parent: Path, name: str, digits: int = 3) -> Iterator[Path]:
    """Make a folder ``<name>001``, or with the first number above all that are there.

    Whoever makes it has it: two processes never get the same one. If it is empty in the end, it is
    removed again.

    Args:
        parent: Folder of all runs; made if needed.
        name: What stands before the number.
        digits: Digits of the number, filled up with zeros.

    Raises:
        CannotWrite: The folder cannot be made.
    """
    matches = (re.fullmatch(rf"{re.escape(name)}(\d+)", path.name) for path in _inside(parent))
    number = max((int(match[1]) for match in matches if match), default=0) + 1
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = parent / f"{name}{number:0{digits}d}"
        try:
            with writing(folder):
                folder.mkdir()
                made = folder.stat()
        except OSError:
            if not folder.exists():
                raise
            number += 1  # another process was faster
            continue
        break
    try:
        yield folder
    finally:
        _remove_empty(folder, made)


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove_empty(folder: Path, made: os.stat_result) -> None:
    """Remove a folder that is empty, if it is still the one that was made."""
    with suppress(OSError):
        if os.path.samestat(folder.stat(), made):
            folder.rmdir()
