"""Listeners that keep a run: metrics as JSON lines, sampled groups as pictures.

Each row of metrics.jsonl is one iteration. All timings sit under the key ``seconds``, so that two
runs can be compared without them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .events import Event, IterationEnd, RunStart

__all__ = ["MetricsWriter", "read_metrics"]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; a last line cut short by a kill is left out.

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
            self._rewrite(kept)
        elif isinstance(event, IterationEnd):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_line(event.metrics))

    def _rewrite(self, rows: Iterable[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.partial")
        temporary.write_text("".join(map(_line, rows)), encoding="utf-8")
        temporary.replace(self.path)


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
