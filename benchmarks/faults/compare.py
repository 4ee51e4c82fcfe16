"""Whether a run that was disturbed ended as one that was not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomllib
from safetensors.torch import load_file

__all__ = ["differences", "rows_of", "whole_iterations"]


def differences(disturbed: Path, whole: Path, *, rows_may_miss: bool = False) -> str:
    """What differs between two run folders, times apart; empty if nothing does.

    Args:
        disturbed: Run folder that was killed and resumed, or damaged.
        whole: Run folder of the uninterrupted run.
        rows_may_miss: Rows of metrics and measurements were destroyed; those there must be right.
    """
    wrong = []
    one, other = disturbed / "lora.safetensors", whole / "lora.safetensors"
    if not one.is_file():
        return "there is no lora.safetensors"
    if one.read_bytes() != other.read_bytes():
        ours, theirs = load_file(one), load_file(other)
        equal = ours.keys() == theirs.keys() and all((ours[k] == theirs[k]).all() for k in ours)
        wrong.append("bytes of the LoRA's header" if equal else "tensors of the LoRA")
    for name, key in (("metrics.jsonl", "iteration"), ("held_out.jsonl", "iterations")):
        ours, theirs = rows_of(disturbed / name), rows_of(whole / name)
        numbers = [row[key] for row in ours]
        if numbers != sorted(set(numbers)):
            wrong.append(f"{name} has rows {numbers}")
        elif rows_may_miss:
            expected = {row[key]: row for row in theirs}
            wrong += [f"{name}, row {row[key]}" for row in ours if row != expected.get(row[key])]
        elif ours != theirs:
            wrong.append(f"{name}: {_first_difference(ours, theirs)}")
    ours, theirs = _record(disturbed), _record(whole)
    wrong += [
        f"run.toml: {key} is {ours.get(key)!s:.80} instead of {theirs.get(key)!s:.80}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    for name in ("evaluation.json",):
        if _json(disturbed / name) != _json(whole / name):
            wrong.append(name)
    return "; ".join(wrong)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of JSON lines without times; those that cannot be read are left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append({key: value for key, value in row.items() if key != "seconds"})
    return rows


def whole_iterations(folder: Path) -> int:
    """Iterations in the newest checkpoint of a run folder, read without the library."""
    names = (path.name for path in (folder / "checkpoints").glob("step_*"))
    return max((int(name[5:]) for name in names if re.fullmatch(r"step_\d+", name)), default=0)


def _first_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} rows instead of {len(theirs)}"
    for row, expected in zip(ours, theirs, strict=True):
        for key in expected:
            if row.get(key) != expected[key]:
                return f"{key} is {row.get(key)!r:.60} instead of {expected[key]!r:.60}"
    return "keys"


def _record(folder: Path) -> Mapping[str, Any]:
    """The record by dotted key, without what depends on where the folder lies, and its own id."""
    document = tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))
    for table, key in (("record", "id"), ("record", "digests"), ("run", "folder")):
        document.get(table, {}).pop(key, None)
    return {
        f"{table}.{key}" if isinstance(entries, dict) else table: value
        for table, entries in document.items()
        for key, value in (entries.items() if isinstance(entries, dict) else [("", entries)])
    }


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
