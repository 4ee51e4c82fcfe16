"""Whether a run that was disturbed ended as one that was not."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from chunk_grpo_core.configfile.record import read_document, settings_are_edited

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["differences", "lines_of", "record_of", "rows_of", "whole_iterations"]


def differences(disturbed: Path, whole: Path, *, damaged: str = "", least: int = 0) -> str:
    """What differs between two run folders, times apart; empty if nothing does.

    Args:
        disturbed: Run folder that was killed and resumed, or damaged.
        whole: Run folder of the uninterrupted run.
        damaged: File of rows that was destroyed; those there must be right.
        least: Rows that it must have nevertheless, at its end.
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
        numbers = [row.get(key, -1) for row in ours]
        if len(ours) < (count := len(lines_of(disturbed / name))):
            wrong.append(f"{name}: {count - len(ours)} lines cannot be read")
        elif numbers != sorted(set(numbers)):
            wrong.append(f"{name} has rows {numbers}")
        elif name == damaged:
            expected = {row[key]: row for row in theirs}
            wrong += [f"{name}, row {row[key]}" for row in ours if row != expected.get(row[key])]
            if least and ours[-least:] != theirs[-least:]:
                wrong.append(f"{name}: the newest {least} rows are missing")
        elif ours != theirs:
            wrong.append(f"{name}: {_first_difference(ours, theirs)}")
    ours, theirs = _record(disturbed), _record(whole)
    wrong += [
        f"run.toml: {key} is {ours.get(key)!s:.80} instead of {theirs.get(key)!s:.80}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if _json(disturbed / "evaluation.json") != _json(whole / "evaluation.json"):
        wrong.append("evaluation.json")
    wrong += _other_pictures(disturbed, whole)
    return "; ".join(wrong)


def _other_pictures(disturbed: Path, whole: Path) -> list[str]:
    """Pictures that are missing, or too many, or not those of the uninterrupted run.

    Files of the group before the newest stay for slow readers, and count in neither run.
    """
    wrong = []
    for name in ("group", "samples"):
        ours, theirs = (
            {path.name: path.read_bytes() for path in (run / name).glob("*.png")}
            for run in (disturbed, whole)
        )
        if name == "group":
            newest = max(theirs, default="").partition("_")[0]
            ours, theirs = (
                {file: body for file, body in files.items() if file >= newest}
                for files in (ours, theirs)
            )
        wrong += [
            f"{name}/{file}"
            for file in sorted(ours.keys() | theirs.keys())
            if ours.get(file) != theirs.get(file)
        ]
    return wrong


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of JSON lines without times; those that cannot be read are left out."""
    rows = []
    for line in lines_of(path):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append({key: value for key, value in row.items() if key != "seconds"})
    return rows


def record_of(folder: Path) -> dict[str, Any]:
    """``run.toml`` of a run folder, read without the library."""
    return tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))


def lines_of(path: Path) -> list[str]:
    """Lines of a file as they are, times included; none if there is no file."""
    return path.read_text("utf-8", "replace").splitlines() if path.is_file() else []


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
    """The record by dotted key. Of what every run has of its own (its id, where it lies, and the
    digests, which depend on both) only the form counts; that the digests are right, the library
    says."""
    document = record_of(folder)
    record, run = document.get("record", {}), document.get("run", {})
    if document.get("record"):
        record["digests"] = _of_digests(folder)
        record["id"] = "an id" if re.fullmatch("[0-9a-f]{16}", record.get("id", "")) else "no id"
        run["folder"] = "a path" if Path(run.get("folder", "")).is_absolute() else "no whole path"
    return {
        f"{table}.{key}" if isinstance(entries, dict) else table: value
        for table, entries in document.items()
        for key, value in (entries.items() if isinstance(entries, dict) else [("", entries)])
    }


def _of_digests(folder: Path) -> str:
    try:
        return "of other settings" if settings_are_edited(read_document(folder)) else "right"
    except ValueError as error:
        return str(error)


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
