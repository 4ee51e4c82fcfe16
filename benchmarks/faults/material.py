"""What cases start from: the smallest training, and the run folders that it leaves."""

from __future__ import annotations

import copy
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chunk_grpo_core.configfile.toml import entry

from .compare import differences, rows_of
from .warm import Limits, Warm

__all__ = ["BASE", "EVEN", "KILLED", "Material", "as_toml", "check_cold", "prepare", "put"]

BASE: dict[str, Any] = {
    "iterations": 1,
    "prompts_per_iteration": 1,
    "group_size": 2,
    "checkpoint_every": 1,
    "self_test": False,
    "model": {"type": "tiny"},
    "prompts": {"held_out": 2},
    "grid": {"steps": 3, "shift": 3.0},
    "plan": {"chunks": "1, 1"},
    "optimizer": {"learning_rate": 1e-3, "updates_per_rollout": 1},
    "lora": {"rank": 2},
    "run": {"pictures": 1},
}
"""A real training of one iteration: about a second."""
KILLED: dict[str, Any] = {
    **BASE,
    "iterations": 6,
    "prompts_per_iteration": 2,
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "optimizer": {"learning_rate": 1e-3, "updates_per_rollout": 2, "ema_decay": 0.5},
}
"""A training that is worth being stopped: checkpoints and measurements on the way."""

EVEN = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Noise levels of which a case changes the first one."""


def as_toml(data: Mapping[str, Any]) -> str:
    """A configuration file; keys of the top first, then tables, then lists of tables."""
    plain = [entry(key, value) for key, value in data.items() if not _is_table(value)]
    lines = plain
    for name, value in data.items():
        if isinstance(value, Mapping):
            lines += [f"[{name}]", *(entry(key, item) for key, item in value.items())]
        elif _is_table(value):
            for row in value:
                lines += [f"[[{name}]]", *(entry(key, item) for key, item in row.items())]
    return "\n".join(lines) + "\n"


def _is_table(value: object) -> bool:
    is_rows = isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    return isinstance(value, Mapping) or is_rows


def put(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with values under dotted keys."""
    data = copy.deepcopy(dict(data))
    for dotted, value in changes.items():
        table, _, key = dotted.rpartition(".")
        (data.setdefault(table, {}) if table else data)[key] = value
    return data


@dataclass(frozen=True)
class Material:
    """Run folders that cases copy."""

    finished: Path
    """Of a run of :data:`KILLED`, done."""
    stopped: Path
    """Of the same run, killed when four iterations and two checkpoints were there."""
    other: Path
    """Of another run, with another seed and rank, done."""
    seconds: float
    """How long the run takes here."""
    even_reward: float
    """Mean reward of one iteration of :data:`BASE` with the noise levels :data:`EVEN`."""
    continued_reward: float
    """The same of :data:`BASE` itself when it continues the LoRA of the finished run."""

    @property
    def lora(self) -> Path:
        """The LoRA of the finished run."""
        return self.finished / "lora.safetensors"


def prepare(warm: Warm, folder: Path) -> Material:
    """Train what cases start from.

    Raises:
        RuntimeError: An undisturbed run does not work.
    """
    runs = {}
    for name, changes in {
        "finished": {},
        "other": {"seed": 7, "lora.rank": 4, "optimizer.ema_decay": 0.9},
    }.items():
        place = folder / name
        place.mkdir(parents=True)
        (place / "base.toml").write_text(as_toml(put(KILLED, changes)))
        start = time.monotonic()
        ended = warm.run(("train", "base.toml", "--out", "run"), place, Limits(seconds=120))
        if ended.code != 0:
            raise RuntimeError(f"an undisturbed run fails: {ended.stderr}")
        runs[name] = (place / "run", time.monotonic() - start)
    for words in (
        ("sample", "run", "--count", "1"),
        ("convert", "run/lora.safetensors", "native.safetensors", "--to", "native"),
        ("convert", "run/lora.safetensors", "diffusers.safetensors", "--to", "diffusers"),
    ):
        ended = warm.run(words, folder / "finished", Limits(seconds=60))
        if ended.code != 0:
            raise RuntimeError(f"{words[0]} fails with a good LoRA: {ended.stderr}")
    even = {"grid": {"sigmas": list(EVEN)}, "plan": {"chunks": "step"}}
    lora = runs["finished"][0] / "lora.safetensors"
    continued = {"run.continue_from": str(lora), "lora.rank": 16}
    rewards = [
        _reward(warm, folder / name, put(BASE, changes))
        for name, changes in {"even": even, "continued": continued}.items()
    ]
    stopped = _stopped(warm, folder / "stopped", folder / "finished" / "base.toml")
    return Material(runs["finished"][0], stopped, runs["other"][0], runs["other"][1], *rewards)


def _reward(warm: Warm, place: Path, data: Mapping[str, Any]) -> float:
    """Mean reward of the first iteration."""
    place.mkdir()
    (place / "base.toml").write_text(as_toml(data))
    ended = warm.run(("train", "base.toml", "--out", "run"), place, Limits(seconds=120))
    if ended.code != 0:
        raise RuntimeError(f"a training of one iteration fails: {ended.stderr}")
    return rows_of(place / "run" / "metrics.jsonl")[0]["reward_mean"]


def check_cold(material: Material, folder: Path) -> None:
    """Repeat the run in processes that import everything by themselves.

    Raises:
        RuntimeError: It comes to something else.
    """
    place = folder / "cold"
    place.mkdir(parents=True)
    shutil.copy(material.finished.parent / "base.toml", place)
    with Warm(cold=True) as cold:
        ended = cold.run(("train", "base.toml", "--out", "run"), place, Limits(seconds=240))
    if ended.code != 0:
        raise RuntimeError(f"a run that is not forked fails: {ended.stderr}")
    if wrong := differences(place / "run", material.finished):
        raise RuntimeError(f"two equal runs differ: {wrong}")


def _stopped(warm: Warm, place: Path, config: Path) -> Path:
    """A run that was killed with two checkpoints, after its fourth iteration."""
    for _ in range(5):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copy(config, place)
        child = warm.start(("train", "base.toml", "--out", "run"), place, Limits(seconds=120))
        while not child.ended():
            if (place / "run" / "checkpoints" / "step_000004").exists():
                child.send(signal.SIGKILL)
            time.sleep(0.002)
        child.wait()
        if not (place / "run" / "checkpoints" / "step_000006").exists():
            return place / "run"
    raise RuntimeError("a run could not be killed between its fourth iteration and its end")
