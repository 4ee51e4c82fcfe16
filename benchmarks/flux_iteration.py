"""A whole training iteration of FLUX.1 at its true size, with random weights: time and memory.

python -m benchmarks.flux_iteration --precision fp8 --pixels 1024 --memory 24    # does it fit?
python -m benchmarks.flux_iteration --against-reference --preset gcpo-script     # how fast is it?
python -m benchmarks.flux_iteration --tiny                                       # anywhere

Transformer, LoRA, optimiser, picture decoder, trajectories and reward are all there, as in a
training; text encoders are not, because they are gone when a training begins. ``--memory`` caps
what PyTorch may take, so that a training that ends has shown that it fits. Steps are few, because
time grows with them and memory does not. The first iteration holds the self-test and warms up; the
others are timed.

With ``--against-reference`` the authors' loop (``reference_loop.py``) trains the same model in
turns with the trainer, from the same adapter.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.attention import ATTENTION, without_cudnn_attention
from chunk_grpo_core.models.flux.config import FluxModel
from chunk_grpo_core.models.flux.policy import FluxPolicy
from chunk_grpo_core.presets import PRESETS, preset_config
from chunk_grpo_core.prompts.example import Prompt
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.cost import peak_gib
from chunk_grpo_core.train.events import AdvantagesEnd, Event, IterationEnd
from chunk_grpo_core.train.trainer import Trainer

from .chunk_vs_step.measure import write_json
from .flux_size import forget_peak, matrix_peak, wait
from .iteration_loops import Passes
from .machine import facts
from .random_flux import FLUX, PRECISIONS, TINY, Size, build, operations, random_decoder
from .reference_loop import ReferenceLoop

__all__ = ["Iteration", "Setup", "config_of", "run", "table"]

PROMPTS = ("a red fox", "a house by the sea", "two green apples", "a city at night")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A model, and how it is trained."""

    size: Size
    precision: str
    pixels: int
    options: FluxModel
    config: TrainConfig
    device: torch.device
    peak: float
    """Operations a second of one large product."""


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """One iteration of one loop."""

    loop: str
    """trainer or reference."""
    seconds: dict[str, float]
    """Of each phase and of all."""
    share_of_peak: dict[str, float]
    """Operations a second in parts of the matrix peak, of rollout and update."""
    sample_steps: dict[str, int]
    """Through the model in the rollout, in the update without and with gradients."""
    peak_gib: float | None
    """What tensors took at most."""
    reserved_gib: float | None
    """What PyTorch took from the card for them."""
    metrics: dict[str, Any] = field(default_factory=dict)


def policy_of(setup: Setup) -> FluxPolicy:
    """The model with its decoder."""
    decode = random_decoder(setup.size, setup.device)
    return build(
        setup.size,
        setup.precision,
        setup.pixels,
        setup.device,
        setup.config.lora,
        setup.options,
        decode,
    )


class _Loop:
    """What both loops have in common: counting and timing."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._passes = Passes()
        self.done: list[Iteration] = []

    def _measured(
        self,
        loop: str,
        seconds: dict[str, float],
        rollout: int,
        metrics: dict[str, Any] | None = None,
    ) -> None:
        setup, passes = self._setup, self._passes
        cuda = setup.device.type == "cuda"
        image = (setup.pixels // 16) ** 2
        forward = operations(setup.size, image)
        keeps = setup.options.gradient_checkpointing
        update = operations(setup.size, image, is_update=True, checkpoints=keeps)
        steps = {
            "rollout": rollout,
            "update, without gradients": passes.forward - passes.backward - rollout,
            "update, with gradients": passes.backward,
        }
        count = {
            "rollout": rollout * forward,
            "update": steps["update, without gradients"] * forward
            + steps["update, with gradients"] * update,
        }
        count["total"] = sum(count.values())
        self.done.append(
            Iteration(
                loop=loop,
                seconds=seconds,
                share_of_peak={
                    phase: count[phase] / seconds[phase] / setup.peak
                    for phase in count
                    if phase in seconds
                },
                sample_steps=steps,
                peak_gib=peak_gib(setup.device),
                reserved_gib=torch.cuda.max_memory_reserved() / 2**30 if cuda else None,
                metrics=metrics or {},
            )
        )

    def _reset(self) -> None:
        self._passes = Passes()
        forget_peak(self._setup.device)


class Ours(_Loop):
    """The trainer, one iteration at a time."""

    def __init__(self, setup: Setup, policy: FluxPolicy) -> None:
        super().__init__(setup)
        self._rollout = 0
        velocity = policy._velocity

        def counted(x_t: Tensor, t: Any, example: Prompt) -> Tensor:
            self._passes.count(len(x_t))
            return velocity(x_t, t, example)

        policy._velocity = counted  # type: ignore[method-assign]
        self._trainer = Trainer(
            policy, load_reward("target_colour"), PROMPTS, setup.config, listener=self._listen
        )

    def iterate(self) -> None:
        """One iteration."""
        self._reset()
        self._trainer._iterate()

    def _listen(self, event: Event) -> None:
        if isinstance(event, AdvantagesEnd):
            self._rollout = self._passes.forward
        if isinstance(event, IterationEnd):
            row = dict(event.metrics)
            seconds: Any = row["seconds"]
            self._measured("trainer", seconds, self._rollout, row)


class Theirs(_Loop):
    """The authors' loop on the same model, one iteration at a time."""

    def __init__(self, setup: Setup, policy: FluxPolicy) -> None:
        super().__init__(setup)
        self._loop = ReferenceLoop(
            transformer=policy.transformer,
            adapter=policy.adapter,
            encode=policy._encode,
            decode=policy._decode,
            latent_shape=policy.latent_shape,
            reward=load_reward("target_colour"),
            prompts=PROMPTS,
            config=setup.config,
            device=setup.device,
            guidance=policy._guidance,
            on_call=lambda rows: self._passes.count(rows),
            on_scores=lambda scores: self._mark(),
        )
        self._iteration, self._marked, self._rollout = 0, 0.0, 0

    def _mark(self) -> None:
        self._marked, self._rollout = time.perf_counter(), self._passes.forward

    def iterate(self) -> None:
        """One iteration."""
        self._reset()
        start = time.perf_counter()
        with without_cudnn_attention():  # as for the trainer; with it the process would end
            self._loop.iterate(self._iteration)
        wait(self._setup.device)
        end = time.perf_counter()
        seconds = {
            "rollout": self._marked - start,  # scores are part of it there
            "update": end - self._marked,
            "total": end - start,
        }
        self._measured("reference", seconds, self._rollout)
        self._iteration += 1


def run(setup: Setup, iterations: int, *, against_reference: bool) -> list[Iteration]:
    """Train, in turns with the authors' loop if asked; the first iteration of each warms up."""
    policy = policy_of(setup)
    loops: list[Any] = [Ours(setup, policy)]
    if against_reference:
        loops.append(Theirs(setup, policy))
    for _ in range(iterations + 1):
        start = policy.adapter.state_dict()
        for loop in loops:
            policy.adapter.load_state_dict(start)
            loop.iterate()
            print(json.dumps(asdict(loop.done[-1])), flush=True)
    return [iteration for loop in loops for iteration in loop.done]


def table(done: list[Iteration]) -> str:
    """One line for each iteration."""
    head = (
        "| loop | rollout, s | update, s | in all, s | of the peak, rollout | update | "
        "sample-steps, rollout / update without / with gradients | GiB of tensors | of PyTorch |"
    )

    def gib(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    rows = [
        f"| {one.loop} | {one.seconds['rollout']:.2f} | {one.seconds['update']:.2f} | "
        f"{one.seconds['total']:.2f} | {one.share_of_peak['rollout']:.0%} | "
        f"{one.share_of_peak['update']:.0%} | {' / '.join(map(str, one.sample_steps.values()))} | "
        f"{gib(one.peak_gib)} | {gib(one.reserved_gib)} |"
        for one in done
    ]
    return "\n".join([head, "|---" * 9 + "|", *rows])


def config_of(options: argparse.Namespace) -> TrainConfig:
    """The preset with few steps."""
    values: dict[str, Any] = {
        "grid": shifted_grid(options.steps, 3.0),
        "plan": ChunkPlan(tuple(options.chunks)),
        "iterations": 1000,
        "prompts_per_iteration": options.prompts,
        "group_size": options.group,
        "chunk_fraction": options.fraction,
        "noise": "all",
        "window.kind": "all",
        "batch_size": options.batch,
        "update_batch_size": options.update_batch,
        "lora.rank": options.rank,
        "lora.alpha": 2.0 * options.rank,
        "optimizer.updates_per_rollout": min(2, options.prompts),
        "optimizer.fused": options.fused,
        "self_test": not options.no_self_test,
    }
    return preset_config(options.preset, **values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.flux_iteration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tiny", action="store_true", help="the tiny FLUX's size, on the CPU")
    add("--precision", choices=PRECISIONS, default="bf16", help="how weights are kept")
    add("--pixels", type=int, default=512, help="width and height")
    add("--preset", choices=sorted(PRESETS), default="safe-lora", help="all other settings")
    add("--prompts", type=int, default=2, help="groups in an iteration")
    add("--group", type=int, default=12, help="pictures of a group")
    add("--steps", type=int, default=4, help="of the rollout")
    add("--chunks", type=int, nargs="+", default=[1, 2], help="of the steps but the last")
    add("--fraction", type=float, default=0.5, help="part of the chunks that a picture trains")
    add("--batch", type=int, default=1, help="samples in a call")
    add("--update-batch", type=int, default=1, help="sample-steps in a call with gradients")
    add("--rank", type=int, default=64, help="of the LoRA")
    add("--attention", choices=sorted(ATTENTION), default="", help="the kernel")
    add("--compile", action="store_true", help="compile the blocks")
    add("--fused", action="store_true", help="AdamW in one kernel")
    add("--no-checkpointing", action="store_true", help="keep what backward needs")
    add("--no-self-test", action="store_true", help="leave the self-test out")
    add("--memory", type=float, help="GiB that PyTorch may take of the card")
    add("--against-reference", action="store_true", help="train with the authors' loop as well")
    add("--iterations", type=int, default=1, help="after the first, which warms up")
    add("--json", type=Path, help="also write the numbers to this file")
    return parser.parse_args()


def main() -> None:
    """Train and print."""
    options = _arguments()
    if options.tiny:
        torch.set_num_threads(1)
        size, device, pixels = TINY, torch.device("cpu"), 64
    elif not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA device, and torch finds none; try it out with --tiny")
    else:
        size, device, pixels = FLUX, torch.device("cuda"), options.pixels
    peak = matrix_peak(device)
    if options.memory and device.type == "cuda":
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(device).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(options.memory / whole)
    setup = Setup(
        size=size,
        precision=options.precision,
        pixels=pixels,
        options=FluxModel(
            attention=options.attention,
            compile=options.compile,
            gradient_checkpointing=not options.no_checkpointing,
        ),
        config=config_of(options),
        device=device,
        peak=peak,
    )
    done = run(setup, options.iterations, against_reference=options.against_reference)
    print(table(done))
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        report = {
            "machine": facts(),
            "matrix_peak": peak,
            "settings": settings,
            "iterations": [asdict(one) for one in done],
        }
        write_json(options.json, report)


if __name__ == "__main__":
    main()
