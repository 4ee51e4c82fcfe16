"""An iteration of the trainer against the authors' loop: time, passes, memory, and equal results.

python -m benchmarks.iteration --json benchmarks/results/iteration.json

Both train the tiny FLUX on the CPU from the same weights with the same prompts, noise, chunks and
settings: the preset ``gcpo-script`` as one card sees it (2 prompts of 12 pictures, 17 steps, chunks
2, 3, 4, 7, half of them trained, 2 updates), with a LoRA of rank 16, without checkpointing, on one
thread. ``reference_loop.py`` says what the authors' loop is. Iterations of the two take turns in
one process, each from the same adapter. Losses, gradients, scores and the adapter must agree, or
the script fails. The reward is ``target_colour``: rounding can tip that of the tiny world over.

Time is processor time, because other programs disturb a clock more; seconds of the clock stand
beside it. Memory is the largest sum of bytes in tensors above the level before the iteration, as
torch's profiler counts every allocation; scratch space of matrix kernels, which stays, is not in
it. The trainer has ``update_batch_size`` 7, the steps of the longest chunk, so that it holds no
more for backward than the reference does. The self-test, once in a run, is off.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from chunk_grpo_core.lora.adapter import PeftAdapter
from chunk_grpo_core.method import streaming
from chunk_grpo_core.method.objective import group_loss
from chunk_grpo_core.models.tiny.model import LATENT_SHAPE, load_tiny_flux
from chunk_grpo_core.models.tiny.policy import tiny_policy
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.presets import preset_config
from chunk_grpo_core.prompts.example import Prompt
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.events import Event, IterationEnd
from chunk_grpo_core.train.trainer import Trainer

from .chunk_vs_step.measure import write_json
from .machine import facts
from .memory import MIB, saved_bytes
from .reference_loop import ReferenceLoop

__all__ = ["LIMITS", "Ours", "Theirs", "compare", "config_of", "failures", "run"]

PROMPTS, GROUP = 2, 12
LIMITS = {"speedup": 2.3, "memory_ratio": 1.0, "difference": 1e-4}
"""Least speed-up, most memory, and largest relative difference of gradients."""
TEXTS = tuple(caption(scene) for scene in TRAIN[:6])


def config_of(**changes: Any) -> TrainConfig:
    """The settings of both loops."""
    values: dict[str, Any] = {
        "prompts_per_iteration": PROMPTS,
        "iterations": 1000,
        "self_test": False,
        "update_batch_size": 7,
        "lora.rank": 16,
        "lora.alpha": 32.0,
    }
    return preset_config("gcpo-script", **{**values, **changes})


@dataclass
class Passes:
    """Calls of the network and samples in them."""

    calls: int = 0
    forward: int = 0
    backward: int = 0

    def count(self, rows: int) -> None:
        """One call."""
        self.calls += 1
        self.forward += rows
        self.backward += rows * torch.is_grad_enabled()


class Ours:
    """The trainer, one iteration at a time. As a context, it stops watching at the end."""

    def __init__(self, config: TrainConfig) -> None:
        self.policy = tiny_policy(config.lora)
        self.losses: list[float] = []
        self.gradients: list[Tensor] = []
        self.scores: list[float] = []
        self.passes = Passes()
        self._trainer = Trainer(
            self.policy, load_reward("target_colour"), TEXTS, config, listener=self._listen
        )
        self._watch()

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *error: object) -> None:
        streaming.chunk_statistics = self._statistics

    @property
    def weights(self) -> list[Tensor]:
        """Of the base, which memory does not count."""
        return list(self.policy.transformer.parameters())

    def adapter(self) -> Tensor:
        """The adapter as one vector."""
        return torch.cat([p.detach().flatten() for p in self.policy.adapter.parameters()])

    def start_from(self, adapter: dict[str, Tensor]) -> None:
        """Set the adapter, of which the trainer has taken in the same gradients so far."""
        self.policy.adapter.load_state_dict(adapter)

    def iterate(self) -> None:
        """One iteration."""
        self._trainer._iterate()

    def _listen(self, event: Event) -> None:
        if isinstance(event, IterationEnd):
            self.scores.append(event.metrics["reward_mean"])  # type: ignore[arg-type]

    def _watch(self) -> None:
        optimizer, step = self._trainer._optimizer, self._trainer._optimizer.step
        velocity = self.policy._velocity
        self._statistics = statistics = streaming.chunk_statistics

        def watched_step(update: int) -> float:
            self.gradients.append(_flat(self.policy.adapter.parameters()))
            return step(update)

        def watched_velocity(x_t: Tensor, t: Any, example: Prompt) -> Tensor:
            self.passes.count(len(x_t))
            return velocity(x_t, t, example)

        def watched_statistics(
            terms: Any, group_facts: Any, counted: Any, config: Any, dimensions: int
        ) -> Any:
            self.losses.append(float(group_loss(terms, group_facts, config)))
            return statistics(terms, group_facts, counted, config, dimensions)

        optimizer.step = watched_step  # type: ignore[method-assign]
        self.policy._velocity = watched_velocity  # type: ignore[method-assign]
        streaming.chunk_statistics = watched_statistics


class Theirs:
    """The reference loop, one iteration at a time."""

    def __init__(self, config: TrainConfig) -> None:
        flux = load_tiny_flux()
        self.gradients: list[Tensor] = []
        self.scores: list[float] = []
        self.passes = Passes()
        self.peft = PeftAdapter(flux.transformer, config.lora, 0)
        self.weights = list(flux.transformer.parameters())
        self._loop = ReferenceLoop(
            transformer=flux.transformer.eval(),
            adapter=self.peft,
            encode=lambda text: flux.text.encode([text]),
            decode=flux.codec.decode,
            latent_shape=LATENT_SHAPE,
            reward=load_reward("target_colour"),
            prompts=TEXTS,
            config=config,
            on_gradient=lambda: self.gradients.append(_flat(self.peft.parameters())),
            on_call=self.passes.count,
            on_scores=lambda scores: self.scores.append(float(scores.mean())),
        )
        self._iteration = 0

    @property
    def losses(self) -> list[float]:
        """Of each update."""
        return self._loop.losses

    @property
    def clipped(self) -> float:
        """Share of the ratios that the clip took out of the gradient."""
        return self._loop.clipped / max(self._loop.ratios, 1)

    def adapter(self) -> Tensor:
        """The adapter as one vector."""
        return torch.cat([p.detach().flatten() for p in self.peft.parameters()])

    def iterate(self) -> None:
        """One iteration."""
        self._loop.iterate(self._iteration)
        self._iteration += 1


def _flat(parameters: list[torch.nn.Parameter]) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def compare(ours: Ours, theirs: Theirs) -> dict[str, float]:
    """Largest differences so far, of gradients relative to their length; of the adapter now."""
    pairs = zip(ours.gradients, theirs.gradients, strict=True)
    losses = zip(ours.losses, theirs.losses, strict=True)
    scores = zip(ours.scores, theirs.scores, strict=True)
    return {
        "gradient": max(float((a - b).norm() / b.norm()) for a, b in pairs),
        "loss": max(abs(a - b) for a, b in losses),
        "reward_mean": max(abs(a - b) for a, b in scores),
        "adapter": float((ours.adapter() - theirs.adapter()).abs().max()),
    }


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - processor, time.perf_counter() - clock


def take_turns(iterations: int) -> dict[str, Any]:
    """Time both loops, after one iteration that is not counted, and compare their results."""
    torch.set_num_threads(1)
    ours, reference = Ours(config_of()), Theirs(config_of())
    loops: dict[str, Ours | Theirs] = {"ours": ours, "reference": reference}
    for loop in loops.values():
        loop.iterate()
        loop.passes.calls = loop.passes.forward = loop.passes.backward = 0
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    differences = [compare(ours, reference)]
    for _ in range(iterations):
        ours.start_from(reference.peft.state_dict())
        for name, loop in loops.items():
            seconds[name].append(_seconds(loop.iterate))
        differences.append(compare(ours, reference))
    return {
        "machine": facts(),
        "seconds": {name: [round(cpu, 3) for cpu, _ in times] for name, times in seconds.items()},
        "seconds_of_the_clock": {
            name: [round(clock, 3) for _, clock in times] for name, times in seconds.items()
        },
        "passes_per_iteration": {
            name: {
                "calls": loop.passes.calls / iterations,
                "forward": loop.passes.forward / iterations,
                "backward": loop.passes.backward / iterations,
            }
            for name, loop in loops.items()
        },
        "difference": {name: max(one[name] for one in differences) for name in differences[0]},
        "clipped_ratios": reference.clipped,
    }


def memory_of(name: str) -> dict[str, int]:
    """Bytes that one iteration takes above the level before it, and holds for backward."""
    torch.set_num_threads(1)
    loop = {"ours": Ours, "reference": Theirs}[name](config_of())
    loop.gradients = _Forgetful()
    loop.iterate()  # allocates what then stays
    peak = _peak_of_tensors(loop.iterate)
    return {"peak": peak, "saved": saved_bytes(loop.weights, loop.iterate)}


class _Forgetful(list[Tensor]):
    def append(self, item: Tensor) -> None:
        """Keep nothing."""


def _peak_of_tensors(work: Callable[[], None]) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def run(iterations: int = 5) -> dict[str, Any]:
    """Measure everything, each part in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1, maxtasksperchild=1) as pool:
        timings = pool.apply(take_turns, (iterations,))
    with spawn.Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(memory_of, (name,)) for name in ("ours", "reference")}
    turns = zip(timings["seconds"]["reference"], timings["seconds"]["ours"], strict=True)
    clocks = timings["seconds_of_the_clock"]
    return {
        "speedup": median(theirs / ours for theirs, ours in turns),
        "speedup_of_the_clock": sum(clocks["reference"]) / sum(clocks["ours"]),
        "memory_ratio": memory["ours"]["peak"] / memory["reference"]["peak"],
        "saved_ratio": memory["ours"]["saved"] / memory["reference"]["saved"],
        "prompts": PROMPTS,
        "group": GROUP,
        "memory": memory,
        **timings,
    }


def failures(result: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    failed = []
    if result["speedup"] < LIMITS["speedup"]:
        failed.append(f"only {result['speedup']:.2f} times as fast as the reference loop")
    if result["memory_ratio"] > LIMITS["memory_ratio"]:
        failed.append(f"{result['memory_ratio']:.2f} times the memory of the reference loop")
    if not max(result["difference"].values()) <= LIMITS["difference"]:
        failed.append(f"results differ: {result['difference']}")
    return failed


def table(result: dict[str, Any]) -> str:
    """Both loops side by side."""
    rows = ["| for one iteration | trainer | reference loop |", "|---|---|---|"]
    both = ("ours", "reference")
    for title, key in (("processor time, s", "seconds"), ("clock, s", "seconds_of_the_clock")):
        rows.append(
            f"| {title} | " + " | ".join(f"{median(result[key][n]):.2f}" for n in both) + " |"
        )
    for key, title in (("calls", "calls of the model"), ("forward", "samples forward")):
        cells = [f"{result['passes_per_iteration'][n][key]:.0f}" for n in both]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    for key, title in (("peak", "peak of all tensors, MiB"), ("saved", "held for backward, MiB")):
        cells = [f"{result['memory'][n][key] / MIB:.1f}" for n in both]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Measure, print, and fail where a limit is not kept."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.iteration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--iterations", type=int, default=5, help="timed iterations of each loop")
    text = "print the ratios alone, as JSON; with a name, also write everything to this file"
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help=text)
    options = parser.parse_args()
    result = run(options.iterations)
    if options.json != "-":
        print(table(result))
    keys = ("speedup", "speedup_of_the_clock", "memory_ratio", "saved_ratio", "difference")
    print(json.dumps({key: result[key] for key in keys}))
    if options.json not in (None, "-"):
        write_json(Path(options.json), result)
    if failed := failures(result):
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
