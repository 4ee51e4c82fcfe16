"""One run: train until the units are spent, measure on the way, write one file of rows.

The first row says what ran, each further row is one measurement, and the last one is the end's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from chunk_grpo_core.models.tiny.evaluate import save_sheet
from chunk_grpo_core.train.events import AlarmRaised, Event, IterationEnd
from chunk_grpo_core.train.trainer import Trainer

from ..machine import facts
from ..tiny import flux_and_policy
from .arms import ARMS, config_of
from .judge import CHOOSING, TESTING, TRAINING, Judge
from .network import NetworkJudge, is_installed
from .units import CountedPolicy
from .worlds import WORLDS

__all__ = ["Run", "marks", "measure_base", "measure_true", "perform", "read_rows"]

_DENSE, _SPARSE, _CHANGE = 2_000, 4_000, 12_000
_NETWORK_AT = 24_000
_PAIRS = 24
_TRUE_SEED = 50_000


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    candidate: int
    seed: int
    units: int
    world: str = "whole"
    screening: bool = False
    smallest: bool = False
    """A trial of a few seconds: four captions, one iteration."""

    @property
    def path(self) -> Path:
        """Where its rows go, inside the results."""
        if self.screening:
            return Path(self.world, "screening", f"{self.arm}-{self.candidate}.jsonl")
        return Path(self.world, "final", f"{self.arm}-seed{self.seed}.jsonl")


def marks(run: Run) -> Iterator[int]:
    """Units from which a measurement is due, without the end's."""
    if run.screening:
        yield run.units * 2 // 3
        return
    for index in count(1):
        dense = index * _DENSE
        yield dense if dense <= _CHANGE else _CHANGE + (index - _CHANGE // _DENSE) * _SPARSE


def _judge(run: Run) -> Judge:
    captions = CHOOSING if run.screening else TESTING
    return Judge(WORLDS[run.world], captions[:4] if run.smallest else captions)


def _network(judge: Judge) -> NetworkJudge | None:
    return NetworkJudge(judge.base_pictures, judge.texts) if is_installed() else None


def measure_base(world: str, screening: bool = False) -> dict[str, float]:
    """All measures of the model that nothing was trained on, on the captions that judge."""
    judge = Judge(WORLDS[world], CHOOSING if screening else TESTING)
    network, images = _network(judge), judge.base_pictures
    return judge.measure(judge.base, images) | (network.measure(images) if network else {})


def measure_true(world: str) -> dict[str, float]:
    """The same of true pictures of the held-out captions: what a perfect model would have."""
    judge = Judge(WORLDS[world])
    network, images = _network(judge), judge.true_pictures(_TRUE_SEED)
    return judge.look(images) | (network.measure(images) if network else {})


def perform(run: Run, results: Path) -> list[dict[str, Any]]:
    """Do one run, or read it if it is finished; returns its rows.

    A run that was interrupted leaves a file that ends in ``.part``, and is done again.

    Raises:
        ValueError: The settings of the arm are refused.
    """
    target = results / run.path
    if target.exists() and (rows := read_rows(target))[0]["units_target"] >= run.units:
        return rows
    torch.set_num_threads(1)
    config = config_of(ARMS[run.arm], run.candidate, run.seed)
    flux, inner = flux_and_policy(config.lora, run.seed)
    policy, judge = CountedPolicy(inner), _judge(run)
    network = _network(judge)
    judge.velocity_ratio(judge.base)  # what is made once, before any clock runs
    due, is_over, alarms = marks(run), False, []
    mark = next(due)
    measuring = 0.0
    begin = time.process_time()

    def listen(event: Event) -> None:
        nonlocal is_over
        if isinstance(event, IterationEnd):
            is_over = policy.units >= run.units or run.smallest
        if isinstance(event, AlarmRaised):
            alarms.append(event.alarm.name)

    trainer = Trainer(
        policy,
        WORLDS[run.world],
        TRAINING[: -len(CHOOSING)] if run.screening else TRAINING,
        config,
        listener=listen,
        wants_stop=lambda: is_over,
    )

    def row() -> dict[str, Any]:
        nonlocal measuring
        start = time.process_time()
        spent = start - begin - measuring
        images = judge.pictures(flux)
        numbers = judge.measure(flux, images)
        if network and (is_over or policy.units >= _NETWORK_AT > rows[-1].get("units", 0)):
            numbers |= network.measure(images)
        if is_over and run.seed == 0 and not run.screening:
            _save_pairs(judge.base_pictures, images, target.with_suffix(".png"))
        measuring += time.process_time() - start
        progress = {"units": policy.units, "iterations": trainer.iteration}
        return {**progress, "seconds": round(spent, 2), **numbers}

    def watch(iterations: int) -> None:
        nonlocal mark
        if policy.units < mark:
            return
        append(row())
        while mark <= policy.units:
            mark = next(due, run.units * 10)

    part = target.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []

    def append(new: dict[str, Any]) -> None:
        rows.append(new)
        with part.open("a", encoding="utf-8") as file:
            file.write(json.dumps(new) + "\n")

    append(_header(run, config.flat()))
    trainer.train(watch)
    append({**row(), "alarms": alarms})
    os.replace(part, target)
    return rows


def _header(run: Run, settings: dict[str, object]) -> dict[str, Any]:
    named = {"arm": run.arm, "candidate": run.candidate, "seed": run.seed}
    return {**named, "units_target": run.units, "settings": settings, "machine": facts()}


def _save_pairs(before: torch.Tensor, after: torch.Tensor, path: Path) -> None:
    """Pictures of the first captions, a row before above the same row after."""
    first = slice(0, 2 * _PAIRS, 2)
    rows = zip(before[first].split(12), after[first].split(12), strict=True)
    sheet = torch.cat([picture for pair in rows for picture in pair])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(sheet, min(12, len(before[first])), path, zoom=1)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a finished run."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
