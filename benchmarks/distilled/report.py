"""Tables and a picture from what was measured; the words around them are written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chunk_grpo_core.optional import require

from ..race.outcomes import interval_of
from .arms import ARMS
from .run import read_rows

__all__ = ["COLUMNS", "RESULTS", "damage", "gate", "verdict", "write_report"]

RESULTS = Path(__file__).parent.parent / "results" / "distilled"
Row = dict[str, Any]
COLUMNS = ("reward_4", "strict_4", "clean_4", "reward_17", "clean_17", "gap")
_MARGIN = 64
_EMPTY_PAGE = """# Does training damage a model that was distilled to few steps?

Protocol: [PROTOCOL.md](../../distilled/PROTOCOL.md). Columns: its section *Measured*.

<!-- untrained: start -->
<!-- untrained: end -->

Changes against the untrained student, means over seeds with 95 % intervals:

<!-- changes: start -->
<!-- changes: end -->

![Pictures of seed 0](pictures.png)
"""


def _rows_of_runs(results: Path) -> dict[str, list[list[Row]]]:
    """Arm -> rows of each seed, without the first, which says what ran."""
    runs = {}
    for name in ARMS:
        paths = sorted((results / "runs").glob(f"{name}-*.jsonl"))
        runs[name] = [read_rows(path)[1:] for path in paths]
    return runs


def damage(gap: float, student: float, base: float) -> float:
    """Part of what distillation brought that training took away again.

    Args:
        gap: Distance between pictures of 4 and of 17 steps, of a trained student.
        student: The same of the untrained student.
        base: The same of the model it was distilled from.
    """
    return (gap - student) / (base - student)


def gate(base: Row, student: Row) -> str | None:
    """Why a student is none: its 4-step pictures are not nearer to the teacher's, or not cleaner.

    Args:
        base: What was measured of the untrained base model.
        student: The same of the student.
    """
    if student["to_teacher"] >= base["to_teacher"]:
        return f"to_teacher is {student['to_teacher']}, the base model's {base['to_teacher']}"
    if student["clean_4"] <= base["clean_4"]:
        return f"clean_4 is {student['clean_4']}, the base model's {base['clean_4']}"
    return None


def verdict(changes: Sequence[float], is_better: Callable[[float], bool]) -> str:
    """``better``, ``worse``, or ``kept`` if the 95 % interval of changes over seeds contains 0."""
    interval = interval_of(changes)
    if interval.low <= 0.0 <= interval.high:
        return "kept"
    return "better" if is_better(interval.mean) else "worse"


def _shown(values: Sequence[float], signed: bool = True) -> str:
    interval = interval_of(values)
    half = interval.high - interval.mean
    return f"{interval.mean:{'+' if signed else ''}.3f} ± {half:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _untrained_table(untrained: dict[str, Row]) -> str:
    names = (*COLUMNS, "strict_17", "to_teacher")
    rows = [[name, *(f"{row[key]:.3f}" for key in names)] for name, row in untrained.items()]
    return _table(["model", *names], rows)


def _changes_table(results: Path, untrained: dict[str, Row]) -> str:
    student, base = untrained["student"], untrained["base"]
    body = []
    for name, runs in _rows_of_runs(results).items():
        for mark in range(len(runs[0])) if runs else ():
            rows = [run[mark] for run in runs]
            cells = [_shown([row[key] - student[key] for row in rows]) for key in COLUMNS]
            undone = [damage(row["gap"], student["gap"], base["gap"]) for row in rows]
            gap = verdict([row["gap"] - student["gap"] for row in rows], lambda mean: mean < 0)
            units = sum(row["units"] for row in rows) / len(rows)
            seconds = sum(row["seconds"] for row in rows) / len(rows)
            body.append(
                [name, str(len(rows)), f"{units:,.0f}", f"{seconds:.0f}"]
                + [*cells, _shown(undone), gap]
            )
    head = ["road", "seeds", "units", "seconds", *COLUMNS, "undone", "few-step quality"]
    return _table(head, body)


def _draw(results: Path) -> None:
    """Stack the strips of seed 0 with their names at the left."""
    image, draw = require("PIL.Image", "To draw pictures"), require("PIL.ImageDraw", "To write")
    names = {"base": "base", "student": "student"}
    strips = [(names[name], results / f"{name}.png") for name in names]
    strips += [(name, results / "runs" / f"{name}-0.png") for name in ARMS]
    opened = [(name, image.open(path)) for name, path in strips if path.exists()]
    width, height = opened[0][1].size
    sheet = image.new("RGB", (width + _MARGIN, height * len(opened)), (24, 24, 27))
    pen = draw.Draw(sheet)
    for index, (name, strip) in enumerate(opened):
        sheet.paste(strip, (_MARGIN, index * height))
        for row, steps in enumerate((4, 17)):
            place = (4, index * height + row * height // 2 + 20)
            pen.text(place, f"{name}\n{steps} steps", fill=(228, 228, 231))
    sheet.save(results / "pictures.png")


def write_report(results: Path) -> None:
    """Write the tables into REPORT.md between their marks, and draw pictures.png."""
    untrained = json.loads((results / "untrained.json").read_text(encoding="utf-8"))
    path = results / "REPORT.md"
    text = path.read_text(encoding="utf-8") if path.exists() else _EMPTY_PAGE
    for name, body in (
        ("untrained", _untrained_table(untrained)),
        ("changes", _changes_table(results, untrained)),
    ):
        start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{body}\n{end}{after}"
    path.write_text(text, encoding="utf-8")
    _draw(results)
