"""One run: train the student until the units are spent, measure on the way, write a file of rows.

The first row says what ran, each further row is one measurement.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chunk_grpo_core.models.tiny.evaluate import save_sheet
from chunk_grpo_core.models.tiny.model import load_tiny_flux
from chunk_grpo_core.models.tiny.reward import TinyWorldReward
from chunk_grpo_core.train.events import AlarmRaised, Event, IterationEnd
from chunk_grpo_core.train.trainer import Trainer

from ..machine import facts
from ..race.judge import TRAINING, Judge
from ..race.units import CountedPolicy
from ..tiny import flux_and_policy, patch_grid
from .arms import ARMS, config_of
from .distil import PIECES

__all__ = [
    "MANY_STEPS",
    "Run",
    "measure_untrained",
    "measures",
    "perform",
    "read_rows",
    "root_mean_square",
    "save_strip",
    "write_rows",
]

MANY_STEPS = 17
_MARK = 6_000
"""Units at which all roads are compared."""
_SHOWN = 12


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    seed: int
    units: int

    @property
    def path(self) -> Path:
        """Where its rows go, inside the results."""
        return Path("runs", f"{self.arm}-{self.seed}.jsonl")


def root_mean_square(difference: Tensor) -> Tensor:
    """Of each picture, (B, H, W, 3) -> (B,)."""
    return difference.square().flatten(1).mean(1).sqrt()


def measures(judge: Judge, few: Tensor, many: Tensor) -> dict[str, float]:
    """Everything that is measured of a model.

    Args:
        judge: Knows the captions.
        few: Its pictures of the student's own steps, (B, H, W, 3).
        many: Those of 17 steps from the same noise.

    Returns:
        Means over pictures: ``reward_4``, ``strict_4``, ``clean_4``, ``grid_4``, the same with
        ``_17``, and ``gap``, the distance of ``few`` from ``many``.
    """
    numbers = {"gap": root_mean_square(few - many)}
    for steps, images in ((PIECES, few), (MANY_STEPS, many)):
        score = judge.reward.score(images, judge.texts)
        numbers[f"reward_{steps}"] = score.values
        numbers[f"strict_{steps}"] = score.extras["strict"]
        numbers[f"clean_{steps}"] = score.extras["clean"]
        numbers[f"grid_{steps}"] = patch_grid(images)
    return {name: round(float(values.mean()), 5) for name, values in numbers.items()}


def perform(run: Run, student: Path, results: Path, judge: Judge) -> list[dict[str, Any]]:
    """Do one run, or read it if it is finished; returns its rows.

    Args:
        run: What to do.
        student: Asset of the distilled model.
        results: Folder of all results.
        judge: Measures the model.

    Raises:
        ValueError: The settings of the arm are refused.
    """
    target = results / run.path
    if target.exists():
        return read_rows(target)
    torch.set_num_threads(1)
    config = config_of(ARMS[run.arm], run.seed)
    flux, inner = flux_and_policy(config.lora, run.seed, student)
    policy = CountedPolicy(inner)
    named = {"arm": run.arm, "seed": run.seed, "units_target": run.units}
    rows: list[dict[str, Any]] = [{**named, "settings": config.flat(), "machine": facts()}]
    is_over, alarms, measuring, begin = False, [], 0.0, time.process_time()

    def listen(event: Event) -> None:
        nonlocal is_over
        if isinstance(event, IterationEnd):
            is_over = policy.units >= run.units
        if isinstance(event, AlarmRaised):
            alarms.append(event.alarm.name)

    trainer = Trainer(
        policy,
        TinyWorldReward(),
        TRAINING,
        config,
        listener=listen,
        wants_stop=lambda: is_over,
    )

    def measure() -> tuple[Tensor, Tensor]:
        nonlocal measuring
        start = time.process_time()
        few, many = (judge.pictures(flux, steps) for steps in (PIECES, MANY_STEPS))
        progress = {"units": policy.units, "iterations": trainer.iteration}
        seconds = round(start - begin - measuring, 2)
        rows.append({**progress, "seconds": seconds, **measures(judge, few, many)})
        measuring += time.process_time() - start
        return few, many

    def watch(iterations: int) -> None:
        if len(rows) == 1 and _MARK <= policy.units < run.units:
            measure()

    trainer.train(watch)
    few, many = measure()
    rows[-1]["alarms"] = alarms
    if run.seed == 0:
        save_strip(few, many, target.with_suffix(".png"))
    write_rows(rows, target)
    return read_rows(target)


def measure_untrained(model: Path, judge: Judge, strip: Path | None = None) -> dict[str, float]:
    """What a model draws that nothing was trained on, and how far its 4 steps are from 32 of the
    base model."""
    flux = load_tiny_flux(model)
    few, many = (judge.pictures(flux, steps) for steps in (PIECES, MANY_STEPS))
    if strip is not None:
        save_strip(few, many, strip)
    teacher = judge.pictures(judge.base, 32)
    distance = float(root_mean_square(few - teacher).mean())
    return {**measures(judge, few, many), "to_teacher": round(distance, 5)}


def save_strip(few: Tensor, many: Tensor, path: Path) -> None:
    """Pictures of the first captions: few steps above, many below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = slice(0, 2 * _SHOWN, 2)
    save_sheet(torch.cat([few[first], many[first]]), _SHOWN, path, zoom=1)


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a file that is either whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(part, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a finished run."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
