"""Listeners that keep the numbers of a run as JSON lines.

Each row of metrics.jsonl is one iteration. All timings sit under the key ``seconds``, so that two
runs can be compared without them. Each row of held_out.jsonl is one measurement on the held-out
prompts: iterations done, mean reward, and the ends of its 95 % interval.

Both files are derived: a run that finds one damaged keeps the rows that it can read, puts the file
aside and writes it anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..disk.atomic import append_line, write_whole
from ..disk.regular import read_regular
from ..train.events import Event, HeldOutEnd, IterationEnd, RunEnd, RunStart
from .derived import put_aside
from .strict_json import strict_json

__all__ = ["HELD_OUT_FILE", "HeldOutWriter", "MetricsWriter", "read_metrics", "reward_means"]

log = logging.getLogger(__name__)

HELD_OUT_FILE = "held_out.jsonl"
_NUMBERS = ("iteration", "iterations")
"""Either one is in every row, and says what the row is about."""
_PLOTTED = (
    *("reward_mean", "reward_std", "grad_norm", "approx_kl", "ratio_error_first_update"),
    *("clip_fraction", "mean", "low", "high"),
)
"""Columns that others count with, where a row has them: a number, a list of numbers, or null."""

Row = dict[str, Any]


def read_metrics(path: str | Path) -> list[Row]:
    """Read a file of JSON lines; a last line cut short by a kill is left out.

    Raises:
        ValueError: Another line is not a row; the message names it.
    """
    rows, damage = _rows_and_damage(Path(path))
    if damage:
        raise ValueError(f"{path}, {damage[0]}")
    return rows


def reward_means(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The mean of each reward of a row, None where it has none; empty if the row does not say."""
    rewards = row.get("rewards")
    entries = rewards.items() if isinstance(rewards, Mapping) else ()
    means = {name: one.get("mean") for name, one in entries if isinstance(one, Mapping)}
    return {str(name): mean if _is_number(mean) else None for name, mean in means.items()}


def _rows_and_damage(path: Path) -> tuple[list[Row], list[str]]:
    """The rows that can be read, and what is wrong with the other lines."""
    if not path.exists():
        return [], []
    try:
        lines = read_regular(path).decode("utf-8").splitlines(keepends=True)
    except OSError as error:
        return [], [f"it cannot be read ({error.strerror})"]
    except UnicodeDecodeError as error:
        return [], [f"it is not UTF-8 ({error.reason})"]
    rows, damage = [], []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines) or line.endswith("\n"):
                damage.append(f"line {number}: {error}")
    return rows, damage


def _row(line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError("not a row, but another kind of JSON")
    numbers = [row[name] for name in _NUMBERS if name in row]
    if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"a row without a number of its {' or '.join(_NUMBERS)}")
    for name in _PLOTTED:
        values = row.get(name)
        if not all(map(_is_number, values if isinstance(values, list) else [values])):
            raise ValueError(f"a row whose {name} is no number")
    return row


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, (int, float)) and not isinstance(value, bool)


class _History:
    """Rows of one file, one for each number, in order; in memory from the first event on."""

    def __init__(self, path: str | Path, key: str) -> None:
        self.path, self._key = Path(path), key
        self._row_of: dict[int, Row] | None = None

    @property
    def rows(self) -> list[Row]:
        """All rows, in order."""
        row_of = self._read()
        return [row_of[number] for number in sorted(row_of)]

    def _read(self) -> dict[int, Row]:
        if self._row_of is None:
            rows, damage = _rows_and_damage(self.path)
            self._row_of = {row[self._key]: row for row in rows if self._key in row}
            if damage:
                put_aside(self.path, damage[0])
        return self._row_of

    def keep(self, wanted: Callable[[int], bool]) -> None:
        """Drop the rows whose number is not wanted, and write the rest."""
        self._row_of = {number: row for number, row in self._read().items() if wanted(number)}
        self.write()

    def add(self, number: int, row: object) -> str:
        """Add a row, in place of one with the same number, in memory; returns it as a line."""
        line = strict_json(row)
        self._read()[number] = json.loads(line)
        return line

    def write(self) -> None:
        """Write all rows."""
        write_whole(self.path, "".join(f"{json.dumps(row)}\n" for row in self.rows))


class MetricsWriter:
    """Append every iteration to metrics.jsonl; on resume, first drop rows that will be redone."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._history = _History(path, "iteration")
        self._is_behind = False

    @property
    def rows(self) -> list[Row]:
        """One for each iteration, whatever has become of the file."""
        return self._history.rows

    def __call__(self, event: Event) -> None:
        """Listen to one event."""
        if isinstance(event, RunStart):
            self._history.keep(lambda iteration: iteration < event.first_iteration)
        elif isinstance(event, IterationEnd):
            self._append(self._history.add(event.iteration, event.metrics))
        elif isinstance(event, RunEnd) and (self._is_behind or self._differs()):
            self._write()

    def _append(self, line: str) -> None:
        if self._is_behind:
            self._write()
            return
        self._is_behind = True  # in case the disk is full
        append_line(self.path, line)
        self._is_behind = False

    def _write(self) -> None:
        self._history.write()
        self._is_behind = False

    def _differs(self) -> bool:
        rows, damage = _rows_and_damage(self.path)
        if not damage and [r["iteration"] for r in rows] == [r["iteration"] for r in self.rows]:
            return False
        log.warning("%s was changed while the run went on; it is written anew", self.path)
        return True


class HeldOutWriter:
    """Write every measurement to held_out.jsonl; a repeated one takes the place of the first."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._history = _History(path, "iterations")

    @property
    def rows(self) -> list[Row]:
        """One for each measurement, whatever has become of the file."""
        return self._history.rows

    def __call__(self, event: Event) -> None:
        """Listen to one event."""
        if isinstance(event, RunStart):
            self._history.keep(lambda iterations: iterations <= event.first_iteration)
        elif isinstance(event, HeldOutEnd):
            self._history.add(event.iterations, asdict(event))
            self._history.write()
