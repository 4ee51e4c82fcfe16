"""Checkpoints of a training: safetensors and JSON, never pickle, never half written.

    <folder>/step_000123/          after iteration 123 (1-based)
        adapter.safetensors  optimizer.safetensors
        state.json                 iterations done, and what they were trained with

A checkpoint is written under a temporary name, flushed to disk, then renamed; a run killed at any
moment therefore finds its last complete one. Random numbers need no state: every seed derives
from (seed, iteration, prompt, sample).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..disk.atomic import sync_folder, write_whole
from ..optional import require

__all__ = ["Checkpoint", "Checkpoints", "TrainingState"]

_KEEP = 2
"""Complete checkpoints kept; older ones are deleted."""
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


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step_*[0-9]"))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then delete all but the newest ones."""
        save = require("safetensors.torch", "To write checkpoints").save
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"step_{checkpoint.iteration:06d}"
        temporary = self.folder / f"{final.name}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_whole(temporary / _ADAPTER, save(checkpoint.adapter))
        write_whole(temporary / _OPTIMIZER, save(checkpoint.optimizer))
        state = {"iteration": checkpoint.iteration, "trained_with": checkpoint.state.trained_with}
        write_whole(temporary / _STATE, json.dumps(state, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(self.folder)
        for old in self.all()[:-_KEEP]:
            shutil.rmtree(old)
        return final

    def newest_state(self) -> TrainingState | None:
        """What the newest complete checkpoint says of itself; None when there is none."""
        newest = self.all()[-1:]
        return _read_state(newest[0]) if newest else None

    def load(self) -> Checkpoint | None:
        """Read the newest complete checkpoint; None when the run has not written one."""
        newest = self.all()[-1:]
        if not newest:
            return None
        load_file = require("safetensors.torch", "To read checkpoints").load_file
        return Checkpoint(
            _read_state(newest[0]),
            adapter=load_file(newest[0] / _ADAPTER),
            optimizer=load_file(newest[0] / _OPTIMIZER),
        )


def _read_state(checkpoint: Path) -> TrainingState:
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    return TrainingState(state["iteration"], state["trained_with"])
