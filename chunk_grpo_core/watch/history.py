"""Listeners that keep the numbers of a run as JSON lines.

Each row of metrics.jsonl is one iteration. All timings sit under the key ``seconds``, so that two
runs can be compared without them. Each row of held_out.jsonl is one measurement on the held-out
prompts: iterations done, mean reward, and the ends of its 95 % interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..disk.atomic import write_whole
from ..train.events import Event, HeldOutEnd, IterationEnd, RunStart

__all__ = ["HELD_OUT_FILE", "HeldOutWriter", "MetricsWriter", "read_metrics"]

HELD_OUT_FILE = "held_out.jsonl"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; a last line cut short by a kill is left out.

    Raises:
        ValueError: Another line is not JSON; the message names it.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    return rows


class MetricsWriter:
    """Append every iteration to metrics.jsonl; on resume, first drop rows that will be redone."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __call__(self, event: Event) -> None:
        """Listen to one event."""
        if isinstance(event, RunStart):
            kept = [r for r in read_metrics(self.path) if r["iteration"] < event.first_iteration]
            _rewrite(self.path, kept)
        elif isinstance(event, IterationEnd):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_line(event.metrics))


class HeldOutWriter:
    """Write every measurement to held_out.jsonl; a repeated one takes the place of the first."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __call__(self, event: Event) -> None:
        """Listen to one event."""
        if isinstance(event, RunStart):
            rows = read_metrics(self.path)
            _rewrite(self.path, (r for r in rows if r["iterations"] <= event.first_iteration))
        elif isinstance(event, HeldOutEnd):
            others = [r for r in read_metrics(self.path) if r["iterations"] != event.iterations]
            _rewrite(self.path, sorted([*others, asdict(event)], key=lambda r: r["iterations"]))


def _rewrite(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_whole(path, "".join(map(_line, rows)))


def _line(row: object) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: object) -> object:
    """Replace NaN and infinities, which JSON does not know, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
