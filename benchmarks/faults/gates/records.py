"""``run.toml``: the record of a run, edited by hand and by accident, then resumed and used."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from chunk_grpo_core.configfile.toml import toml_value

from ..material import Material
from ..mutate import damaged_bytes
from ..outcomes import Case, Expected
from ..values import KEYS, nonsense_for, sane_for

__all__ = ["records"]

_MAY_CHANGE = {
    "checkpoint_every",
    "evaluate_every",
    "batch_size",
    "update_batch_size",
    "score_while_sampling",
    "self_test",
    "optimizer.learning_rate",
    "objective.clip_low",
    "objective.clip_high",
    "objective.kl_ref",
    "run.pictures",
    "iterations",
}
"""As docs/command_line.md says."""


def records(rng: random.Random, folder: Path, material: Material) -> Case:
    """A finished run whose record was edited, and one of the commands that read it."""
    shutil.copytree(material.finished, folder / "run")
    file = folder / "run" / "run.toml"
    text = file.read_text(encoding="utf-8")
    command = rng.choice(["resume", "resume", "evaluate", "sample"])
    more = {"resume": ("--json",), "evaluate": ("--json",), "sample": ("--count", "1")}[command]
    argv, names = (command, "run", *more), ("run.toml",)
    kind = rng.randrange(4)
    if kind == 0:
        body, what = damaged_bytes(text.encode(), rng)
        file.write_bytes(body)
        return Case(argv=argv, about=f"{command}: {what}", names=names)
    if kind == 1:
        lines = text.splitlines()
        del lines[rng.randrange(len(lines))]
        file.write_text("\n".join(lines), encoding="utf-8")
        return Case(argv=argv, about=f"{command}: a line was deleted", names=names)
    name = rng.choice([key for key in sorted(KEYS) if _line_of(text, key)])
    is_sane = kind == 2
    value = (sane_for if is_sane else nonsense_for)(KEYS[name], rng)
    before = _line_of(text, name)
    after = f"{name.rpartition('.')[2]} = {toml_value(value)}"
    file.write_text(text.replace(before, after, 1), encoding="utf-8")
    key = name.rpartition(".")[2]
    expected = Expected.either
    if not is_sane:
        expected = Expected.refused
    if is_sane and command == "resume" and before != after:
        expected = Expected.either if name in _MAY_CHANGE else Expected.refused
    if name.startswith(("prompts.", "grid.")) or before == after:
        expected = Expected.either
    about = f"{command}: {before!r} -> {after!r:.80}"
    return Case(argv=argv, about=about, names=(key, *names), expected=expected)


def _line_of(text: str, dotted: str) -> str:
    """The line that sets a key, in its own table."""
    table, _, key = dotted.rpartition(".")
    now = ""
    for line in text.splitlines():
        if line.startswith("["):
            now = line.strip("[]")
        elif now == table and line.startswith(f"{key} = "):
            return line
    return ""
