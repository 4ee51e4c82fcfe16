"""Run folders of which one file is damaged: resumed, evaluated, sampled."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..compare import differences
from ..material import Material
from ..mutate import damaged_bytes
from ..outcomes import Case, Check, Expected
from ..warm import Ended
from .loras import different_pictures

__all__ = ["folders"]

_NEWEST = "step_000004"
"""Newest checkpoint of the stopped run."""
_JSON = (
    "null",
    "[]",
    "{}",
    "1",
    '"x"',
    "[1]",
    '{"iteration": -1}',
    '{"iteration": 99}',
    "[" * 9999,
)
_DAMAGE = (
    "bytes",
    "bytes",
    "json",
    "json",
    "deleted",
    "folder",
    "pipe",
    "swapped",
    "renamed",
    "link",
)


def folders(rng: random.Random, folder: Path, material: Material) -> Case:
    """A run, finished or killed, one file of it damaged, and a command."""
    command = rng.choice(["resume", "resume", "resume", "evaluate", "sample"])
    whole = [material.finished]  # the others need a LoRA
    source = rng.choice([material.stopped, *whole] if command == "resume" else whole)
    run = folder / "run"
    shutil.copytree(source, run)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.suffix != ".png")
    file = rng.choice(files)
    name = file.relative_to(run).as_posix()
    damage = rng.choice(_DAMAGE)
    what = _damage(file, damage, rng, material)
    more = {"resume": ("--json",), "evaluate": ("--json",), "sample": ("--count", "1")}[command]
    return Case(
        argv=(command, "run", *more),
        about=f"{command}, {source.parent.name}: {name} {what}",
        names=(name, "it belongs to another run") if name == "run.toml" else (name,),
        expected=_expected(command, name, damage),
        check=_check(command, name, damage, material, source is material.stopped),
        codes=(1, 2) if name == "lock" else (2,),  # what cannot be written is no mistake
    )


def _damage(file: Path, damage: str, rng: random.Random, material: Material) -> str:
    if damage == "bytes":
        body, what = damaged_bytes(file.read_bytes(), rng)
        file.write_bytes(body)
        return what
    if damage == "json":
        body = rng.choice(_JSON) if file.suffix != ".jsonl" or rng.random() < 0.5 else _a_line(file)
        file.write_text(body)
        return f"is {body[:40]!r}"
    if damage == "swapped":
        theirs = next(iter(sorted(material.other.rglob(file.name))), None)
        if theirs and theirs.is_file():
            shutil.copy(theirs, file)
        whole = material.other / "checkpoints" / file.parent.name
        if whole.is_dir() and rng.random() < 0.5:
            shutil.copytree(whole, file.parent, dirs_exist_ok=True)
            return "and its whole checkpoint taken from another run"
        return "taken from another run"
    if damage == "renamed":
        file.rename(file.with_name(f"{file.name}.bak"))
        return "renamed"
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "pipe":
        os.mkfifo(file)
    elif damage == "link":
        file.symlink_to(file)
    return {"deleted": "deleted", "folder": "is a folder", "pipe": "is a pipe"}.get(
        damage, "links to itself"
    )


def _a_line(file: Path) -> str:
    """Rows, and among them one of another kind."""
    lines = file.read_text().splitlines()
    return "\n".join([*lines[:1], json.dumps([1, 2]), *lines[1:]]) + "\n"


def _expected(command: str, name: str, damage: str) -> Expected:
    if name == "run.toml":
        return Expected.either
    if name == "lock" and damage in ("folder", "pipe", "link"):
        return Expected.refused  # without a lock nobody may go on
    if name == "lora.safetensors" and command != "resume":
        return Expected.either
    # Derived files are written anew; of two checkpoints one is whole.
    return Expected.accepted


def _check(
    command: str, name: str, damage: str, material: Material, is_stopped: bool
) -> Check | None:
    if name == "lora.safetensors" and command != "resume":
        return None  # a turned bit of a weight is a weight like another
    if name == "run.toml":
        return None
    checkpoint = name.split("/")[1] if name.startswith("checkpoints/") else ""

    def check(folder: Path, ended: Ended) -> str:
        if command == "resume":
            if is_stopped and checkpoint == _NEWEST and checkpoint not in ended.stderr:
                return f"says nothing of {checkpoint}, which is damaged"
            least = {"metrics.jsonl": 2, "held_out.jsonl": 1}.get(name, 0) if is_stopped else 0
            return differences(folder / "run", material.finished, damaged=name, least=least)
        if command == "sample":
            drawn = folder / "sampled"
            return different_pictures(drawn, material.finished.parent / "sampled")
        facts = json.loads(ended.stdout)
        reference = json.loads((material.finished / "evaluation.json").read_text())
        theirs = _mean(reference["after"]) - _mean(reference["before"])
        return "" if abs(facts["gain"] - theirs) < 1e-4 else f"gain {facts['gain']}, not {theirs}"

    return check


def _mean(side: Mapping[str, Any]) -> float:
    flat = [reward for rewards in side["rewards"] for reward in rewards]
    return sum(flat) / len(flat)
