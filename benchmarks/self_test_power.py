"""Which faults the self-test catches, in which precision, and how often it cries wolf.

python -m benchmarks.self_test_power --json benchmarks/results/self_test_power.json

The tiny FLUX through diffusers, a LoRA beside its 39 layers, fresh or trained (factors B drawn with
a standard deviation of 0.03, as after some hundred updates), float32, bfloat16 and fp8 (weights in
8 bits, products in bfloat16). Faults are put into gradients by hooks on the factors, into the model
as it is trained, or into what was recorded. False alarms are counted without a fault, each seed
with a LoRA, noise and captions of its own. On one thread; about an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.policy import Velocity
from chunk_grpo_core.method.rollout import Trajectory, rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.flux.policy import FluxPolicy
from chunk_grpo_core.models.fp8 import replace_linears, to_fp8
from chunk_grpo_core.models.tiny.model import LATENT_SHAPE, load_tiny_flux
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.prompts.example import Prompt
from chunk_grpo_core.train.self_test import STANDARD, THOROUGH, Effort, SelfTestFailed, self_test

from .chunk_vs_step.measure import write_json

__all__ = ["PRECISIONS", "Counts", "Run", "count", "false_alarms", "layer_faults", "table"]

PRECISIONS = ("float32", "bfloat16", "fp8")
STEPS, GROUP, PROMPTS = 17, 4, 4
TRAINED = 0.03
"""Standard deviation of a trained LoRA's factors B."""
Fault = Callable[["Run"], tuple[Velocity, list[Trajectory]]]


@dataclass(frozen=True)
class Run:
    """A policy and what it has sampled."""

    policy: FluxPolicy
    velocity: Velocity
    groups: list[Trajectory]

    @property
    def layers(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Factors A and B of each layer."""
        tensors = self.policy.adapter.parameters()
        return list(zip(tensors[::2], tensors[1::2], strict=True))


@dataclass(frozen=True)
class Counts:
    """How many faults of a kind were caught."""

    fault: str
    precision: str
    is_trained: bool
    effort: str
    caught: int
    of: int


def load(precision: str, is_trained: bool, seed: int) -> FluxPolicy:
    """The tiny FLUX with a LoRA, in one of the precisions."""
    flux = load_tiny_flux()
    transformer = flux.transformer
    if precision != "float32":
        transformer.bfloat16()
    if precision == "fp8":
        linears = {n: m for n, m in transformer.named_modules() if isinstance(m, nn.Linear)}
        for name in replace_linears(transformer, lambda n: "blocks" in n and "norm" not in n):
            narrow, wide = transformer.get_submodule(name), linears[name]
            weight, scale = to_fp8(wide.weight)
            narrow.weight = nn.Parameter(weight, requires_grad=False)
            narrow.scale_weight, narrow.bias = scale, wide.bias
    policy = FluxPolicy(
        name="tiny-flux",
        transformer=transformer,
        encode=lambda text: flux.text.encode([text]),
        decode=flux.codec.decode,
        latent_shape=LATENT_SHAPE,
        lora=LoraConfig(rank=16, alpha=32.0),
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for b in policy.adapter.parameters()[1::2] if is_trained else ():
            b.add_(TRAINED * torch.randn(b.shape, generator=generator))
    return policy


def start(precision: str, is_trained: bool, seed: int, work: Callable[[Run], object]) -> None:
    """Sample, and call ``work`` with the result."""
    policy = load(precision, is_trained, seed)

    def phase(velocity: Velocity) -> None:
        groups = [
            rollout(
                velocity,
                caption(TRAIN[(PROMPTS * seed + number) % len(TRAIN)]),
                shifted_grid(STEPS, 3.0),
                SdeConfig(),
                Noise(True, 100 * seed + number, GROUP),
                LATENT_SHAPE,
            )
            for number in range(PROMPTS)
        ]
        work(Run(policy, velocity, groups))

    policy.run(phase)


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


MODELS: dict[str, Callable[[Velocity], Velocity]] = {
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


def count(run: Run, precision: str, is_trained: bool, every: int = 1) -> list[Counts]:
    """Put every fault into one run."""
    counts = []

    def note(fault: str, result: tuple[int, int], effort: str = "standard") -> None:
        counts.append(Counts(fault, precision, is_trained, effort, *result))
        print(counts[-1], flush=True)

    for factor in (0.9, 1.1, 1.01):
        note(f"all gradients x {factor}", whole_faults(run, STANDARD, factor))
    for factor in (0.0, -1.0, 0.9):
        note(f"one layer x {factor:g}", layer_faults(run, STANDARD, factor, every))
    for name, change in MODELS.items():
        note(name, other_model(run, STANDARD, change))
    for name, change_records in RECORDS.items():
        note(name, wrong_records(run, STANDARD, change_records))
    if precision != "float32":
        for factor in (-1.0, 0.5):
            result = layer_faults(run, THOROUGH, factor, 3 * every)
            note(f"one layer x {factor:g}", result, "thorough")
    return counts


def false_alarms(precision: str, is_trained: bool, seeds: int) -> Counts:
    """Self-tests that fail without a fault."""
    alarms: list[bool] = []
    for seed in range(seeds):
        start(precision, is_trained, seed, lambda run: alarms.append(is_caught(run, STANDARD)))
    return Counts("none", precision, is_trained, "standard", sum(alarms), len(alarms))


def table(counts: Sequence[Counts]) -> str:
    """Faults in rows, precisions in columns: caught of all, fresh / trained."""
    names = dict.fromkeys((c.fault, c.effort) for c in counts)
    lines = [f"| fault | {' | '.join(PRECISIONS)} |", "|---" * (1 + len(PRECISIONS)) + "|"]
    for fault, effort in names:
        cells = []
        for precision in PRECISIONS:
            of_cell = [
                f"{c.caught} of {c.of}"
                for c in sorted(counts, key=lambda c: c.is_trained)
                if (c.fault, c.effort, c.precision) == (fault, effort, precision)
            ]
            cells.append(", ".join(of_cell) or "-")
        title = fault if effort == "standard" else f"{fault}, {effort}"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Count everything."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.self_test_power",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=10, help="false alarms: seeds of each kind")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="*", default=PRECISIONS)
    parser.add_argument("--every", type=int, default=1, help="try every n-th layer only")
    parser.add_argument(
        "--json", type=Path, help="replace the counts of these precisions in a file"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    counts: list[Counts] = []
    for precision in options.precision:
        for is_trained in (False, True):
            counts.append(false_alarms(precision, is_trained, options.seeds))
            print(counts[-1], flush=True)
            start(
                precision,
                is_trained,
                0,
                lambda run, p=precision, t=is_trained: counts.extend(
                    count(run, p, t, options.every)
                ),
            )
    if options.json:
        if options.json.exists():
            rows = json.loads(options.json.read_text(encoding="utf-8"))["counts"]
            others = [Counts(**row) for row in rows]
            counts = [c for c in others if c.precision not in options.precision] + counts
        rows = [asdict(c) for c in counts]
        write_json(options.json, {"torch": torch.__version__, "counts": rows})
    print(table(counts))


if __name__ == "__main__":
    main()
