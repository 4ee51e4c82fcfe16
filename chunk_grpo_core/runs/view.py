"""What somebody who watches a run wants to know, read from its folder alone.

A running, a finished and a killed run look the same here, so that whoever draws them needs one
way only. All numbers are those of the files; nothing is measured again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..configfile.record import RUN_FILE, read_record, read_settings
from ..measure.reward_fell import fallen_in
from ..train.alarms import alarms_of
from ..watch.history import read_metrics, reward_means
from ..watch.newest_group import read_group
from .folder import RunFolder

__all__ = ["run_names", "run_view"]

_ROW = (
    "iteration",
    "reward_mean",
    "reward_std",
    "clip_fraction",
    "approx_kl",
    "velocity_norm",
    "reference_gap",
    "grad_norm",
    "masked_scores",
    "ratio_error_first_update",
    "seconds",
    "peak_memory_gib",
)
"""What is drawn of a row of metrics.jsonl."""


def run_names(folder: str | Path, limit: int = 100) -> list[str]:
    """Names of the runs in a folder of runs, the one that was written to last first."""

    def last_write(run: RunFolder) -> float:
        file = run.metrics_file if run.metrics_file.exists() else run.run_file
        return file.stat().st_mtime

    runs = [RunFolder(file.parent) for file in Path(folder).glob(f"*/{RUN_FILE}")]
    newest = sorted(runs, key=lambda run: (last_write(run), run.path.name), reverse=True)
    return [run.path.name for run in newest[:limit]]


def run_view(folder: str | Path, since: int = 0) -> dict[str, Any]:
    """Read a run folder.

    Args:
        folder: One run.
        since: Leave out rows of earlier iterations (0-based).

    Returns:
        ``name``; ``model``, ``reward``; ``iterations`` wished for and ``done``; ``plan`` (sizes)
        and ``weights``, None without a plan; ``clip`` (lower and upper range of the ratio);
        ``rows`` of metrics.jsonl from iteration ``since`` on, without what nobody draws, and of
        several rewards the mean of each;
        ``held_out``: all rows of held_out.jsonl; ``group``: the newest group (see
        ``watch/newest_group.py``) or None;
        ``alarms``: signs that the run does not learn, as texts;
        ``is_measured``: whether the run came to its end, early or not. JSON-ready.

    Raises:
        FileNotFoundError: There is no run in the folder.
        ValueError: A file of the run is broken; the message names it.
    """
    run = RunFolder(Path(folder))
    settings, record = read_settings(run.path), read_record(run.path)
    objective, plan = settings.objective, settings.plan
    held_out = [row for row in read_metrics(run.held_out_file) if "iterations" in row]
    rows = [row for row in read_metrics(run.metrics_file) if "iteration" in row]
    done = rows[-1]["iteration"] + 1 if rows else 0
    return {
        "name": run.path.name,
        "model": record.model,
        "reward": record.reward,
        "iterations": settings.iterations,
        "done": done,
        "plan": plan and list(plan.sizes),
        "weights": plan and plan.weights and list(plan.weights),
        "clip": [objective.clip_low, objective.clip_high],
        "rows": [_drawn(row) for row in rows if row["iteration"] >= since],
        "held_out": held_out,
        "group": read_group(run.group),
        "alarms": [alarm.text for alarm in (*alarms_of(rows, settings), *fallen_in(held_out))],
        "is_measured": bool(rows)
        and (any(row["iterations"] == done for row in held_out) if held_out else _is_shown(run)),
    }


def _is_shown(run: RunFolder) -> bool:
    """Whether a run without measurements (it has no reward, or votes) has drawn its last
    pictures."""
    files = (run.evaluation_file, run.metrics_file)
    if not all(file.is_file() for file in files):
        return False
    shown, trained = (file.stat().st_mtime_ns for file in files)
    return shown >= trained


def _drawn(row: Mapping[str, Any]) -> dict[str, Any]:
    drawn = {name: row[name] for name in _ROW if name in row}
    if len(means := reward_means(row)) > 1:
        drawn["rewards"] = means
    return drawn
