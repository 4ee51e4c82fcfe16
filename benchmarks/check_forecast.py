"""Is what ``chunk-grpo train --check`` forecasts true? Five trainings of the tiny FLUX.

python -m benchmarks.check_forecast --json benchmarks/results/check_forecast.json

Each setting is checked in one process, and trained in another from its beginning to its end, with
both measurements and the run folder. Time is processor time of one thread, because other programs
disturb a clock more: the clock that the library reads is exchanged. The forecast must lie within
20 % of what the training took, or the script fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from chunk_grpo_core.models.tiny.policy import tiny_policy
from chunk_grpo_core.models.tiny.world import HELD_OUT, TRAIN, caption
from chunk_grpo_core.presets import preset_config
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.runs.check import check_training
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.runs.forecast import Check
from chunk_grpo_core.train.config import TrainConfig

from .machine import facts

__all__ = ["SETTINGS", "config_of", "measure"]

ALLOWED = 0.2
_LORA = {"lora.rank": 16, "lora.alpha": 32.0, "optimizer.learning_rate": 1e-3}
_PROMPTS, _PICTURES = 24, 2

SETTINGS: dict[str, tuple[str, dict[str, object]]] = {
    "quick": ("quick", {"iterations": 10}),
    "quick, one picture at a time": ("quick", {"iterations": 3, "batch_size": 1}),
    "nft, best and worst of 24, two updates": (
        "quick",
        {
            "iterations": 5,
            "group_size": 24,
            "advantage.keep": 6,
            "forward.objective": "nft",
            "optimizer.updates_per_rollout": 2,
        },
    ),
    "few-step, measured on the way": ("few-step", {"iterations": 6, "evaluate_every": 2}),
    "gcpo-script, four prompts": ("gcpo-script", {"iterations": 3, "prompts_per_iteration": 4}),
}
"""Name -> preset, and what is changed of it."""


def config_of(name: str) -> TrainConfig:
    """The training of a name."""
    preset, changes = SETTINGS[name]
    return preset_config(preset, **{**_LORA, **changes})


def _facts(name: str) -> dict[str, Any]:
    """Arguments that a check and a training share."""
    config = config_of(name)
    return {
        "policy": tiny_policy(config.lora, config.seed),
        "reward": load_reward("tiny_world"),
        "prompts": [caption(scene) for scene in TRAIN],
        "held_out": [caption(scene) for scene in HELD_OUT[:_PROMPTS]],
        "config": config,
        "evaluation_seeds": _PICTURES,
    }


def _checked(name: str) -> tuple[Check, float]:
    """What the check says, and how long it took."""
    facts_of = _facts(name)
    began = time.perf_counter()
    return check_training(**facts_of), time.perf_counter() - began


def _trained(name: str) -> tuple[float, float]:
    """How long the training took, and an iteration of it."""
    facts_of = _facts(name)
    with TemporaryDirectory() as place:
        began = time.perf_counter()
        outcome = run_experiment(**facts_of, folder=RunFolder(Path(place, "run")))
        took = time.perf_counter() - began
    return took, fmean(row["seconds"]["total"] for row in outcome.rows[1:])


def _exchange_clock() -> None:
    time.perf_counter = time.process_time
    torch.set_num_threads(1)


def measure(name: str) -> dict[str, Any]:
    """Check and train one setting; seconds of processor time."""
    spawn = get_context("spawn")
    answers = []
    for work in (_checked, _trained):
        with spawn.Pool(1, _exchange_clock) as alone:
            answers.append(alone.apply(work, (name,)))
    (check, checked), (took, iteration) = answers
    return {
        "setting": name,
        "iterations": check.iterations,
        "pictures": check.pictures,
        "check_seconds": round(checked, 2),
        "forecast_seconds": round(check.seconds, 2),
        "training_seconds": round(took, 2),
        "error": round(check.seconds / took - 1.0, 4),
        "forecast_seconds_per_iteration": round(check.seconds_per_iteration, 3),
        "seconds_per_iteration": round(iteration, 3),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.check_forecast",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--only", choices=SETTINGS, help="one setting")
    options = parser.parse_args()
    rows = []
    for name in [options.only] if options.only else SETTINGS:
        rows.append(measure(name))
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=1) + "\n")
    worst = max(abs(row["error"]) for row in rows)
    print(f"largest error {worst:.1%}, allowed {ALLOWED:.0%}")
    sys.exit(worst > ALLOWED)


if __name__ == "__main__":
    main()
