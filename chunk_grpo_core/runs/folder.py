"""Where everything of a run lies on disk.

    run.toml                 the record: settings, what was loaded, what changed (``record.py``)
    checkpoints/             see ``train/checkpoint.py``
    metrics.jsonl            one row for each iteration (``watch/history.py``)
    held_out.jsonl           one row for each measurement (``watch/history.py``)
    group/                   the newest group that was scored (``watch/newest_group.py``)
    samples/                 a sampled group now and then (``watch/pictures.py``)
    evaluation.json          held-out scores before and after (``experiment.py``)
    plots/  lora.safetensors (``results.py``)

``run.toml`` and the checkpoints are the run; everything else is derived from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..configfile.record import RUN_FILE
from ..train.checkpoint import Checkpoints
from ..watch.history import HELD_OUT_FILE

__all__ = ["RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def run_file(self) -> Path:
        """The record."""
        return self.path / RUN_FILE

    @property
    def checkpoints(self) -> Checkpoints:
        """Its checkpoints."""
        return Checkpoints(self.path / "checkpoints")

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

    def check_holds_a_run(self) -> None:
        """Make sure that there is something to resume.

        Raises:
            FileNotFoundError: There is no run here.
        """
        if not self.holds_a_run:
            raise FileNotFoundError(f"{self.path} holds no run: {RUN_FILE} is missing")
