"""Checkpoints of a training: safetensors and JSON, never pickle, never half written.

    <folder>/step_000123/          after iteration 123 (1-based)
        adapter.safetensors  optimizer.safetensors
        state.json                 iterations done, what they were trained with, whose they are,
                                   and digests of all of it

A checkpoint is written under a temporary name, flushed to disk, then renamed; a run killed at any
moment therefore finds its last complete one. One that was damaged since, or that belongs to another
run, is passed over for the next older one. Random numbers need no state: every seed derives from
(seed, iteration, prompt, sample).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..disk.atomic import whole_folder, write_whole, writing
from ..disk.regular import read_regular
from ..optional import require

__all__ = ["Checkpoint", "Checkpoints", "TrainingState", "content_digest", "save_as_it_ends"]

log = logging.getLogger(__name__)

_KEEP = 2
"""Checkpoints kept; older ones are deleted."""
_FORMAT = 1
"""Version of what is in state.json."""
_STATE, _ADAPTER, _OPTIMIZER = "state.json", "adapter.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """How far a training is, and what it was trained with."""

    iteration: int
    """Iterations done."""
    trained_with: Mapping[str, object]
    """Every setting by its dotted key, and the facts; see
    :func:`~chunk_grpo_core.train.may_change.trained_with`."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on."""

    state: TrainingState
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """See :meth:`~chunk_grpo_core.train.optimizer.AdapterOptimizer.tensors`."""

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return self.state.iteration


class _Unusable(Exception):
    """A checkpoint cannot be taken; the text says why."""


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(
        self,
        folder: str | Path,
        run_id: str = "",
        check_in_place: Callable[[], None] = lambda: None,
    ) -> None:
        """Set up; nothing is read or written.

        Args:
            folder: Theirs alone, inside that of the run.
            run_id: Which run they belong to, see
                :attr:`~chunk_grpo_core.configfile.record.Record.id`.
            check_in_place: Called before one is written; raises if the run's folder is not there.
        """
        self.folder, self.run_id = Path(folder), run_id
        self._check_in_place = check_in_place
        self._intact: set[Path] = set()

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first, whoever they belong to."""
        return sorted((p for p in self.folder.glob("step_*") if _number(p)), key=_number)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then delete all but the newest ones of this run.

        Raises:
            CannotWrite: The disk is full, or something else is in the way.
        """
        save = require("safetensors.torch", "To write checkpoints").save
        self._check_in_place()
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        final = self.folder / f"step_{checkpoint.iteration:06d}"
        with whole_folder(final) as temporary:
            digests = {}
            for name, tensors in (
                (_ADAPTER, checkpoint.adapter),
                (_OPTIMIZER, checkpoint.optimizer),
            ):
                body = save(tensors)
                digests[name] = hashlib.sha256(body).hexdigest()
                write_whole(temporary / name, body)
            write_whole(temporary / _STATE, self._state_text(checkpoint.state, digests))
        self._intact.add(final)
        mine = [path for path in self.all() if self._is_intact(path)]
        for old in mine[:-_KEEP]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def drop_after(self, iteration: int) -> None:
        """Delete this run's checkpoints of more iterations."""
        for path in self.all():
            if _number(path) > iteration and self._is_intact(path):
                shutil.rmtree(path, ignore_errors=True)

    def _state_text(self, state: TrainingState, digests: Mapping[str, str]) -> str:
        content = {
            "format": _FORMAT,
            "run": self.run_id,
            "iteration": state.iteration,
            "trained_with": state.trained_with,
        }
        return json.dumps(
            {**content, "sha256": {**digests, _STATE: content_digest(content)}}, indent=1
        )

    def newest_state(self) -> TrainingState | None:
        """What :meth:`load` would say of itself; None when there is none."""
        newest = self._newest(lambda path, reason: None)
        return newest and newest.state

    def load(self) -> Checkpoint | None:
        """Read the newest checkpoint that is whole and belongs to the run; a warning names each one
        that is passed over.

        Returns:
            None when the run has not written one.

        Raises:
            ValueError: There are checkpoints, but none can be used.
        """

        def tell(path: Path, reason: str) -> None:
            log.warning("the checkpoint %s is not used: %s", path, reason)

        return self._newest(tell)

    def _newest(self, tell: Callable[[Path, str], None]) -> Checkpoint | None:
        reasons = {}
        for path in reversed(self.all()):
            try:
                checkpoint = self._read(path)
            except _Unusable as error:
                reasons[path.name] = str(error)
                tell(path, str(error))
                continue
            self._intact.add(path)
            return checkpoint
        if not reasons:
            return None
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ValueError(
            f"no checkpoint in {self.folder} can be used ({listed}). Put one back from a copy, or "
            "delete this folder: the run then begins again at its first iteration"
        )

    def _is_intact(self, path: Path) -> bool:
        if path in self._intact:
            return True
        try:
            self._read(path)
        except _Unusable:
            return False
        self._intact.add(path)
        return True

    def _read(self, path: Path) -> Checkpoint:
        """Raises _Unusable."""
        state, digests = self._read_state(path)
        load = require("safetensors.torch", "To read checkpoints").load
        tensors = {}
        for name in (_ADAPTER, _OPTIMIZER):
            body = _bytes(path / name)
            if hashlib.sha256(body).hexdigest() != digests.get(name):
                raise _Unusable(f"{name} is damaged (its SHA-256 is not that in {_STATE})")
            tensors[name] = dict(sorted(load(body).items()))  # load gives any order
        return Checkpoint(state, adapter=tensors[_ADAPTER], optimizer=tensors[_OPTIMIZER])

    def _read_state(self, path: Path) -> tuple[TrainingState, Mapping[str, Any]]:
        try:
            state: Any = json.loads(_bytes(path / _STATE))
        except (ValueError, RecursionError) as error:
            raise _Unusable(f"{_STATE} is damaged (not JSON)") from error
        if not isinstance(state, dict) or not isinstance(digests := state.pop("sha256", 0), dict):
            raise _Unusable(f"{_STATE} is damaged (it has no digests)")
        if digests.get(_STATE) != content_digest(state):
            raise _Unusable(f"{_STATE} is damaged (its SHA-256 is another one)")
        if state.get("format") != _FORMAT:
            raise _Unusable(f"{_STATE} has format {state.get('format')!r}, not {_FORMAT}")
        if state["run"] != self.run_id:
            raise _Unusable("it belongs to another run")
        if state["iteration"] != _number(path):
            raise _Unusable(f"{_STATE} says that it is of iteration {state['iteration']}")
        return TrainingState(state["iteration"], state["trained_with"]), digests


def _number(path: Path) -> int:
    """The iteration in the name of a checkpoint; 0 if it is none."""
    match = re.fullmatch(r"step_(\d{6,18})", path.name)
    return int(match[1]) if match else 0


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise _Unusable(f"{path.name} cannot be read ({error.strerror})") from error


def content_digest(content: Mapping[str, object]) -> str:
    """SHA-256 of plain values, whatever the order of their names; as hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save_as_it_ends(
    checkpoints: Checkpoints, checkpoint: Checkpoint, saved: int, error: BaseException
) -> None:
    """Write a checkpoint of the whole iterations that have none, as an error ends the run.

    Args:
        checkpoints: Where to.
        checkpoint: Of the last whole iteration.
        saved: Iterations that have a checkpoint; what is lost is logged if the disk fails, too.
        error: What ends the run.
    """
    try:
        checkpoints.save(checkpoint)
    except OSError as second:
        if str(second) != str(error):
            log.error("%s", second)
        log.error("iterations %d to %d are lost", saved + 1, checkpoint.iteration)
