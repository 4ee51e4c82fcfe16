"""What an iteration costs against group size, steps, size of the pictures, chunks, processes.

python -m benchmarks.scaling --json benchmarks/results/scaling.json

The trainer on the tiny FLUX, CPU, one thread; one setting changes at a time from groups of 12, 17
steps, 64 x 64 pictures and chunks 2, 3, 4, 7, half of which are trained, two prompts, two updates.
Seconds are processor time of the fastest of a few iterations, after one that is not counted.
Processes are started by torchrun; their seconds are those of the clock, and mean something only up
to the number of cores that are free.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from chunk_grpo_core.method.plan_text import read_plan
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.flux.policy import FluxPolicy
from chunk_grpo_core.models.tiny.model import load_tiny_flux
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.trainer import Trainer

from .chunk_vs_step.measure import write_json
from .machine import facts

__all__ = ["BASE", "SWEEPS", "Case", "Setting", "measure", "table"]

PROMPTS = 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What changes."""

    group: int = 12
    steps: int = 17
    pixels: int = 64
    plan: str = "2, 3, 4, 7"
    update_batch_size: int | None = None


BASE = Setting()
SWEEPS: dict[str, tuple[Setting, ...]] = {
    "group size": tuple(Setting(group=group) for group in (6, 12, 24)),
    "steps": tuple(Setting(steps=steps, plan="size 4") for steps in (9, 17, 33)),
    "pixels": tuple(Setting(pixels=pixels) for pixels in (64, 96, 128)),
    "chunks": tuple(Setting(plan=plan) for plan in ("step", "size 2", "size 4", "size 8", "whole")),
    "update batch": tuple(Setting(update_batch_size=size) for size in (1, 4, 7, None)),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement, of one iteration."""

    sweep: str
    setting: Setting
    rollout: float
    update: float
    trained: float
    """Sample-steps that went through backward."""


def config_of(setting: Setting, iterations: int) -> TrainConfig:
    """The settings of a run."""
    grid = shifted_grid(setting.steps, 3.0)
    return TrainConfig(
        grid=grid,
        plan=read_plan(setting.plan, grid.trainable_steps),
        iterations=iterations,
        prompts_per_iteration=PROMPTS,
        group_size=setting.group,
        update_batch_size=setting.update_batch_size,
        self_test=False,
    )


def trainer_of(setting: Setting, iterations: int) -> Trainer:
    """A fresh trainer; pictures of other sizes are decoded and scored as those of 64 x 64 are."""
    flux, config = load_tiny_flux(), config_of(setting, iterations)
    side = setting.pixels // 8
    policy = FluxPolicy(
        name="tiny-flux",
        transformer=flux.transformer,
        encode=lambda text: flux.text.encode([text]),
        decode=lambda latents: flux.codec.decode(latents[..., :8, :8].contiguous()),
        latent_shape=(16, side, side),
        lora=config.lora,
    )
    texts = [caption(scene) for scene in TRAIN[:6]]
    return Trainer(policy, load_reward("target_colour"), texts, config)


def measure(sweep: str, setting: Setting, iterations: int) -> Case:
    """Time the phases of iterations in this process."""
    trainer = trainer_of(setting, iterations + 1)
    times: dict[str, list[float]] = {"sample": [], "update": []}
    for name, seconds in times.items():
        _time(trainer, name, seconds)
    rows: list[float] = []
    trainer._listen = lambda event: rows.append(getattr(event, "metrics", {}).get("trained_passes"))
    trainer.train()
    passes = [row for row in rows if row is not None][1:]
    return Case(
        sweep=sweep,
        setting=setting,
        rollout=min(times["sample"][1:]),
        update=min(times["update"][1:]),
        trained=sum(passes) / len(passes),
    )


def _time(trainer: Trainer, name: str, seconds: list[float]) -> None:
    plain = getattr(trainer, name)

    def timed(*args: object) -> object:
        start = time.process_time()
        result = plain(*args)
        seconds.append(time.process_time() - start)
        return result

    setattr(trainer, name, timed)


_SCRIPT = """
import time, torch
from dataclasses import replace
torch.set_num_threads(1)
from benchmarks.scaling import BASE, trainer_of
from chunk_grpo_core.processes.launch import join_processes
from chunk_grpo_core.train.trainer import Trainer
with join_processes(timeout=600) as processes:
    plain = trainer_of(BASE, {iterations} + 1)
    config = replace(plain.config, prompts_per_iteration=4)  # so that an update has two groups
    trainer = Trainer(plain.policy, plain.reward, plain.prompts, config, processes=processes)
    trainer._iterate()
    start = time.perf_counter()
    for _ in range({iterations}):
        trainer._iterate()
    if processes.is_writer:
        print("seconds", (time.perf_counter() - start) / {iterations})
"""


def processes(count: int, iterations: int) -> float:
    """Seconds of the clock for an iteration of four prompts that ``count`` processes share."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run.py"
        script.write_text(_SCRIPT.format(iterations=iterations), encoding="utf-8")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*launch, "--nproc-per-node", str(count), str(script)],
            env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    line = next(line for line in done.stdout.splitlines() if line.startswith("seconds "))
    return float(line.split()[1])


def table(cases: list[Case]) -> str:
    """One line for each case, what changes first."""
    names = {
        "group size": "group",
        "steps": "steps",
        "pixels": "pixels",
        "chunks": "plan",
        "update batch": "update_batch_size",
    }
    rows = ["| what changes | rollout, s | update, s | sample-steps trained |", "|---" * 4 + "|"]
    rows += [
        f"| {c.sweep} {getattr(c.setting, names[c.sweep]) or 'as the group'} | {c.rollout:.2f} | "
        f"{c.update:.2f} | {c.trained:.0f} |"
        for c in cases
    ]
    return "\n".join(rows)


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations of each")
    parser.add_argument("--sweep", nargs="*", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [
        measure(sweep, setting, options.iterations)
        for sweep in options.sweep
        for setting in SWEEPS[sweep]
    ]
    print(table(cases))
    shared = {count: processes(count, options.iterations) for count in options.processes}
    for count, seconds in shared.items():
        print(f"{count} processes: {seconds:.2f} s by the clock")
    if options.json:
        report = {
            "machine": facts(),
            "cases": [asdict(case) for case in cases],
            "processes": shared,
        }
        write_json(options.json, report)


if __name__ == "__main__":
    main()
