"""Listeners that show a run in other programs. metrics.jsonl stays what counts (``history.py``).

Every number of a row becomes a curve; nested names are joined by slashes, so ``rewards/clip/mean``
or ``ratio_mean/0`` for the first chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..optional import require
from ..train.events import Event, IterationEnd, Listener, RunStart

__all__ = ["TRACKERS", "TensorBoardListener", "WandbListener", "numbers_of"]


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Flatten a row of metrics: names joined by slashes -> numbers; the rest is left out."""
    numbers: dict[str, float] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                visit(f"{name}/{key}" if name else str(key), item)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                visit(f"{name}/{index}", item)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[name] = value

    visit("", {key: value for key, value in row.items() if key != "iteration"})
    return numbers


class TensorBoardListener:
    """Write event files to ``<run>/tensorboard``."""

    def __init__(self, run_folder: Path) -> None:
        """Raises ImportError if tensorboard is not installed."""
        require("tensorboard", "To log to TensorBoard")
        self._make = require("torch.utils.tensorboard", "To log to TensorBoard").SummaryWriter
        self._folder = run_folder / "tensorboard"
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Listen to one event."""
        if isinstance(event, RunStart):
            # Iterations that were done after the last checkpoint are done again.
            self._writer = self._make(str(self._folder), purge_step=event.first_iteration)
        elif isinstance(event, IterationEnd):
            for name, value in numbers_of(event.metrics).items():
                self._writer.add_scalar(name, value, event.iteration)
            self._writer.flush()


class WandbListener:
    """Send rows to Weights & Biases; a resumed run goes on with its curves."""

    def __init__(self, run_folder: Path) -> None:
        """Raises ImportError if wandb is not installed."""
        self._wandb = require("wandb", "To log to Weights & Biases")
        self._folder = run_folder
        self._run: Any = None
        self._last = -1

    def __call__(self, event: Event) -> None:
        """Listen to one event."""
        if isinstance(event, RunStart):
            self._last = event.iterations - 1
            self._run = self._wandb.init(
                project="chunk-grpo",
                name=self._folder.name,
                id=hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:16],
                dir=str(self._folder),
                resume="allow",
            )
        elif isinstance(event, IterationEnd):
            self._run.log(numbers_of(event.metrics), step=event.iteration)
            if event.iteration == self._last:
                self._run.finish()


#: Name in ``run.log`` -> listener of a run folder.
TRACKERS: dict[str, Callable[[Path], Listener]] = {
    "tensorboard": TensorBoardListener,
    "wandb": WandbListener,
}
