"""Read what was measured so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..chunk_vs_step.measure import write_json
from .arms import ARMS
from .outcomes import chosen_candidate
from .run import measure_base, measure_true, read_rows

__all__ = ["RESULTS", "choices", "read_base", "read_finals", "read_screening", "read_true"]

RESULTS = Path(__file__).parent.parent / "results" / "race"
Rows = list[dict[str, Any]]


def read_base(results: Path, world: str, screening: bool = False) -> dict[str, float]:
    """Measures of the base model, on the captions that judge; taken if they were not yet."""
    path = results / world / ("screening" if screening else "final") / "base.json"
    if not path.exists():
        write_json(path, measure_base(world, screening))
    return json.loads(path.read_text(encoding="utf-8"))


def read_true(results: Path) -> dict[str, float]:
    """Measures of true pictures of the held-out captions; taken if they were not yet."""
    path = results / "whole" / "final" / "true.json"
    if not path.exists():
        write_json(path, measure_true("whole"))
    return json.loads(path.read_text(encoding="utf-8"))


def read_screening(results: Path) -> dict[str, dict[int, Rows]]:
    """Arm -> candidate -> measurements."""
    runs: dict[str, dict[int, Rows]] = {}
    for path in sorted((results / "whole" / "screening").glob("*.jsonl")):
        first, *rows = read_rows(path)
        runs.setdefault(first["arm"], {})[first["candidate"]] = rows
    return runs


def choices(results: Path) -> dict[str, int]:
    """Arm -> the candidate that races, of all arms whose screening is finished."""
    base, screened = read_base(results, "whole", screening=True), read_screening(results)
    chosen = {}
    for name, arm in ARMS.items():
        runs = screened.get(name, {})
        if len(arm.candidates) == 1:
            chosen[name] = 0
        elif len(runs) == len(arm.candidates):
            chosen[name] = chosen_candidate([runs[k] for k in sorted(runs)], base)
    return chosen


def read_finals(results: Path, world: str) -> Mapping[str, dict[int, Rows]]:
    """Arm -> seed -> measurements, the base model's first at 0 units; arms in their order."""
    at_start = {**read_base(results, world), "units": 0, "iterations": 0, "seconds": 0.0}
    runs: dict[str, dict[int, Rows]] = {}
    for path in sorted((results / world / "final").glob("*.jsonl")):
        first, *rows = read_rows(path)
        runs.setdefault(first["arm"], {})[first["seed"]] = [at_start, *rows]
    return {arm: runs[arm] for arm in ARMS if arm in runs}
