"""Small runs in a folder: of the toy policy, and of the command line on the tiny FLUX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fakes import PROMPTS, Brightness, ToyPolicy, toy_config

from chunk_grpo_core.method.cancel import CheckCancel, never_cancel
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.runs.outcome import Outcome
from chunk_grpo_core.train.events import Listener, ignore

TINY = """
prompts_per_iteration = 2
group_size = 2
[model]
type = "tiny"
[prompts]
held_out = 2
[grid]
steps = 3
shift = 3.0
[plan]
chunks = "1, 1"
[lora]
rank = 2
"""
"""A configuration file; keys without a table go in front, further tables behind."""


def toy_run(
    path: Path,
    *,
    resume: bool = False,
    listener: Listener = ignore,
    check_cancel: CheckCancel = never_cancel,
    **settings: Any,
) -> Outcome:
    """Train the toy policy for three iterations, each with a checkpoint; see ``toy_config``."""
    usual = {"iterations": 3, "checkpoint_every": 1, "self_test": False}
    return run_experiment(
        ToyPolicy(),
        Brightness(),
        PROMPTS,
        ("new", "newer"),
        toy_config(**{**usual, **settings}),
        RunFolder(path),
        resume=resume,
        evaluation_seeds=1,
        listener=listener,
        check_cancel=check_cancel,
    )


def without_seconds(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, without what is different each time."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
