"""Which faults the self-test catches, in which precision, and how often it cries wolf.

python -m benchmarks.self_test_power --json benchmarks/results/self_test_power.json

The tiny FLUX through diffusers, a LoRA beside its 39 layers, fresh or trained (factors B drawn with
a standard deviation of 0.03, as after some hundred updates), float32, bfloat16 and fp8 (weights in
8 bits, products in bfloat16). Faults are put into gradients by hooks on the factors, into the model
as it is trained, or into what was recorded, on one seed. False alarms are counted without a fault,
on seeds on which no tolerance was set, each with a LoRA, noise and captions of its own, on the tiny
FLUX and on a FLUX of the same kind with random weights. On one thread; about an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chunk_grpo_core.method.policy import Velocity
from chunk_grpo_core.method.rollout import Trajectory
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.prompts.example import Prompt
from chunk_grpo_core.train.self_test import STANDARD, THOROUGH, Effort, SelfTestFailed, self_test

from .chunk_vs_step.measure import write_json
from .self_test_runs import MODELS, PRECISIONS, TINY, Run, start

__all__ = ["FRESH", "Counts", "count", "false_alarms", "layer_faults", "table"]

FRESH = 1000
"""First seed that counts false alarms; tolerances were set on seeds below."""


@dataclass(frozen=True)
class Counts:
    """How many faults of a kind were caught."""

    fault: str
    precision: str
    is_trained: bool
    effort: str
    caught: int
    of: int
    model: str = TINY


def is_caught(
    run: Run,
    effort: Effort,
    velocity: Velocity | None = None,
    groups: Sequence[Trajectory] | None = None,
) -> bool:
    """Whether the self-test fails."""
    parameters = run.policy.adapter.parameters()
    try:
        self_test(velocity or run.velocity, parameters, groups or run.groups, effort=effort)
    except SelfTestFailed:
        return True
    return False


@contextmanager
def scaled(tensors: Sequence[nn.Parameter], factor: float) -> Iterator[None]:
    """Gradients that somebody got wrong."""
    hooks = [tensor.register_hook(lambda gradient: factor * gradient) for tensor in tensors]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def whole_faults(run: Run, effort: Effort, factor: float) -> tuple[int, int]:
    """All gradients times a factor."""
    with scaled(run.policy.adapter.parameters(), factor):
        return int(is_caught(run, effort)), 1


def layer_faults(run: Run, effort: Effort, factor: float, every: int = 1) -> tuple[int, int]:
    """The gradient of one layer times a factor, one layer after the other."""
    caught = []
    for layer in run.layers[::every]:
        with scaled(layer, factor):
            caught.append(is_caught(run, effort))
    return sum(caught), len(caught)


def other_model(
    run: Run, effort: Effort, change: Callable[[Velocity], Velocity]
) -> tuple[int, int]:
    """The model as it is trained (with gradients) is another one, or in both ways."""
    changed = change(run.velocity)

    def in_training(x_t: Tensor, t: Any, example: Prompt) -> Tensor:
        velocity = changed if torch.is_grad_enabled() else run.velocity
        return velocity(x_t, t, example)

    caught = [is_caught(run, effort, velocity) for velocity in (in_training, changed)]
    return sum(caught), len(caught)


VELOCITIES: dict[str, Callable[[Velocity], Velocity]] = {
    "another caption": lambda v: lambda x_t, t, example: v(x_t, t, caption(TRAIN[-1])),
    "the time of the next step": lambda v: lambda x_t, t, example: v(x_t, 0.9 * t, example),
    "velocity x 1.05": lambda v: lambda x_t, t, example: 1.05 * v(x_t, t, example),
}


def _with_log_p(trajectory: Trajectory, step: int) -> Trajectory:
    log_p = trajectory.log_p.clone()
    log_p[step] += 1.0
    return replace(trajectory, log_p=log_p)


def _rolled(tensor: Tensor) -> Tensor:
    return tensor.roll(1, 1)


RECORDS: dict[str, Callable[[Trajectory], Sequence[Trajectory]]] = {
    "log-densities of the wrong sample": lambda t: [replace(t, log_p=_rolled(t.log_p))],
    "states of the wrong sample": lambda t: [replace(t, states=_rolled(t.states))],
    "log-densities of the next step": lambda t: [replace(t, log_p=t.log_p.roll(1, 0))],
    "old log-density + 1 at one step": lambda t: [
        _with_log_p(t, step) for step in range(len(t.log_p))
    ],
}


def wrong_records(
    run: Run, effort: Effort, change: Callable[[Trajectory], Sequence[Trajectory]]
) -> tuple[int, int]:
    """What was recorded of every group, or of one, is wrong."""
    changed = zip(*(change(group) for group in run.groups), strict=True)
    caught = [is_caught(run, effort, groups=list(groups)) for groups in changed]
    return sum(caught), len(caught)


def half_faults(run: Run, effort: Effort, factor: float) -> tuple[int, int]:
    """The gradients of all factors A, or of all factors B, times a factor."""
    caught = []
    for first in (0, 1):
        with scaled(run.policy.adapter.parameters()[first::2], factor):
            caught.append(is_caught(run, effort))
    return sum(caught), len(caught)


def count(run: Run, precision: str, is_trained: bool, every: int, kinds: str) -> list[Counts]:
    """Put every fault of some kinds into one run."""
    counts = []

    def note(fault: str, result: tuple[int, int], effort: str = "standard") -> None:
        counts.append(Counts(fault, precision, is_trained, effort, *result))
        print(counts[-1], flush=True)

    if kinds != "layers":
        for factor in (0.9, 1.1, 1.01):
            note(f"all gradients x {factor}", whole_faults(run, STANDARD, factor))
        for factor in (0.9, 0.5):
            note(f"all factors A, or all B, x {factor}", half_faults(run, STANDARD, factor))
        for name, change in VELOCITIES.items():
            note(name, other_model(run, STANDARD, change))
        for name, change_records in RECORDS.items():
            note(name, wrong_records(run, STANDARD, change_records))
    if kinds != "whole":
        for factor in (0.0, -1.0, 0.9):
            note(f"one layer x {factor:g}", layer_faults(run, STANDARD, factor, every))
        for factor in (-1.0, 0.5) if precision != "float32" else ():
            result = layer_faults(run, THOROUGH, factor, 3 * every)
            note(f"one layer x {factor:g}", result, "thorough")
    return counts


def false_alarms(model: str, precision: str, is_trained: bool, seeds: int) -> Counts:
    """Self-tests that fail without a fault."""
    alarms: list[bool] = []
    for seed in range(FRESH, FRESH + seeds):
        start(
            precision,
            is_trained,
            seed,
            lambda run: alarms.append(is_caught(run, STANDARD)),
            model=model,
        )
    return Counts("none", precision, is_trained, "standard", sum(alarms), len(alarms), model)


def table(counts: Sequence[Counts]) -> str:
    """Faults in rows, precisions in columns: caught of all, fresh / trained."""
    names = dict.fromkeys((c.fault, c.effort, c.model) for c in counts)
    lines = [f"| fault | {' | '.join(PRECISIONS)} |", "|---" * (1 + len(PRECISIONS)) + "|"]
    for fault, effort, model in names:
        cells = []
        for precision in PRECISIONS:
            of_cell = [
                f"{c.caught} of {c.of}"
                for c in sorted(counts, key=lambda c: c.is_trained)
                if (c.fault, c.effort, c.model, c.precision) == (fault, effort, model, precision)
            ]
            cells.append(", ".join(of_cell) or "-")
        words = (fault, effort * (effort != "standard"), model * (model != TINY))
        title = ", ".join(filter(None, words))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Count everything."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.self_test_power",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=24, help="false alarms: seeds of each kind")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="*", default=PRECISIONS)
    parser.add_argument("--every", type=int, default=1, help="try every n-th layer only")
    parser.add_argument(
        "--only",
        choices=("whole", "layers", "alarms"),
        help="only faults of the whole model, only those of single layers, or only false alarms",
    )
    parser.add_argument("--json", type=Path, help="replace what was counted anew in a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    counts: list[Counts] = []
    for precision, is_trained in product(options.precision, (False, True)):
        if options.only in (None, "alarms"):
            for model in MODELS:
                counts.append(false_alarms(model, precision, is_trained, options.seeds))
                print(counts[-1], flush=True)
        if options.only != "alarms":
            start(
                precision,
                is_trained,
                0,
                lambda run, p=precision, t=is_trained: counts.extend(
                    count(run, p, t, options.every, options.only or "all")
                ),
            )
    if options.json:
        if options.json.exists():
            rows = json.loads(options.json.read_text(encoding="utf-8"))["counts"]
            replaced = set(map(_kind, counts))
            others = [Counts(**row) for row in rows]
            counts = [c for c in others if _kind(c) not in replaced] + counts
        rows = [asdict(c) for c in counts]
        write_json(options.json, {"torch": torch.__version__, "counts": rows})
    print(table(counts))


def _kind(counts: Counts) -> tuple[object, ...]:
    """Everything but the numbers."""
    return tuple(value for name, value in asdict(counts).items() if name not in ("caught", "of"))


if __name__ == "__main__":
    main()
