"""The run folder and its checkpoints: safetensors and JSON, never pickle, never half written.

    <run>/config.json                       settings of the run, written once
    <run>/metrics.jsonl                     one row for each iteration (``watch/history.py``)
    <run>/held_out.jsonl                    one row for each measurement (``watch/history.py``)
    <run>/group/                            the newest group that was scored (``newest_group.py``)
    <run>/evaluation.json                   held-out scores before and after (``experiment.py``)
    <run>/checkpoints/step_000123/          after iteration 123 (1-based)
        adapter.safetensors  optimizer.safetensors  state.json

A checkpoint is written under a temporary name, flushed to disk, then renamed; a run killed at any
moment therefore finds its last complete one. Random numbers need no state: every seed derives
from (seed, iteration, prompt, sample).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..optional import require
from .config import TrainConfig

__all__ = ["Checkpoint", "RunFolder"]

_KEEP = 2
"""Complete checkpoints kept; older ones are deleted."""

#: Settings that may differ when a run goes on.
_MAY_CHANGE = frozenset(
    {
        "iterations",
        "checkpoint_every",
        "evaluate_every",
        "batch_size",
        "update_batch_size",
        "score_while_sampling",
        "self_test",
    }
)


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on."""

    iteration: int
    """Iterations done."""
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """See :meth:`~chunk_grpo_core.train.optimizer.AdapterOptimizer.tensors`."""


class RunFolder:
    """One run on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        """config.json."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    def create(self, config: TrainConfig, record: Mapping[str, object]) -> None:
        """Start a new run here and record its settings.

        Args:
            config: Settings of the run.
            record: Further JSON-ready facts (model, rewards, prompts, versions).

        Raises:
            FileExistsError: There is a run here already.
        """
        if self.config_file.exists():
            raise FileExistsError(
                f"{self.path} already holds a run; resume it, or choose another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json(self.config_file.name, {"config": config.flat(), **record})

    def write_json(self, name: str, data: Mapping[str, object]) -> None:
        """Write a further JSON file, never half written."""
        _write_file(self.path / name, json.dumps(data, indent=1).encode())

    def read_record(self) -> dict[str, Any]:
        """Read config.json.

        Raises:
            FileNotFoundError: There is no run here.
        """
        if not self.config_file.exists():
            raise FileNotFoundError(f"{self.path} holds no run: {self.config_file.name} is missing")
        return json.loads(self.config_file.read_text(encoding="utf-8"))

    def read_config(self) -> TrainConfig:
        """Read the settings the run was created with."""
        return TrainConfig.of(self.read_record()["config"])

    def check_same(self, config: TrainConfig, record: Mapping[str, object]) -> None:
        """Make sure that a run is resumed with what it was started with.

        Args:
            config: Settings now.
            record: Further facts now; every one of them must be as it was.

        Raises:
            ValueError: A setting differs that would change its numbers; the message names it.
        """
        before = self.read_record()
        old = {**before, **_settings(TrainConfig.of(before["config"]))}
        new = {**record, **_settings(config)}
        for key in sorted(new.keys() - _MAY_CHANGE):
            if old.get(key) != new[key]:
                was, now = (_short(values.get(key)) for values in (old, new))
                raise ValueError(
                    f"{self.path} was started with {key} = {was}, not {now}; resume it "
                    "with the same settings, or start a new run"
                )

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step_*[0-9]"))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then delete all but the newest ones."""
        save = require("safetensors.torch", "To write checkpoints").save
        folder = self.path / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        final = folder / f"step_{checkpoint.iteration:06d}"
        temporary = folder / f"{final.name}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_file(temporary / "adapter.safetensors", save(checkpoint.adapter))
        _write_file(temporary / "optimizer.safetensors", save(checkpoint.optimizer))
        state = json.dumps({"iteration": checkpoint.iteration})
        _write_file(temporary / "state.json", state.encode())
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync_directory(folder)
        for old in self.checkpoints()[:-_KEEP]:
            shutil.rmtree(old)
        return final

    def load(self) -> Checkpoint | None:
        """Read the newest complete checkpoint; None when the run has not written one."""
        found = self.checkpoints()
        if not found:
            return None
        load_file = require("safetensors.torch", "To read checkpoints").load_file
        state = json.loads((found[-1] / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(
            iteration=state["iteration"],
            adapter=load_file(found[-1] / "adapter.safetensors"),
            optimizer=load_file(found[-1] / "optimizer.safetensors"),
        )


def _settings(config: TrainConfig) -> dict[str, object]:
    """Settings by name, as objects that know which of their fields make a difference."""
    return {field.name: getattr(config, field.name) for field in fields(config)}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _write_file(path: Path, body: bytes) -> None:
    temporary = path.with_name(f"{path.name}.partial")
    with open(temporary, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _sync_directory(path: Path) -> None:
    """Flush the rename itself; only POSIX systems can (and need to)."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
