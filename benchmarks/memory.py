"""Peak memory of one backward pass against the length of the chunk.

python -m benchmarks.memory --json benchmarks/results/memory.json

Two ways to the same gradient of one chunk, on the tiny FLUX: *streamed* is the library's
``accumulate_group``; *one graph* keeps every step of the chunk for a single backward pass, as
trainers do that send a chunk as one batch.

Two measures, each case in a process of its own:

saved: the most bytes that autograd holds for backward at a time, each storage counted once,
    weights not at all. Exact: it depends neither on the machine nor on an allocator.
peak: what the pass really took above the level before it. On the CPU resident memory as Linux
    reports it (VmHWM, reset before the pass), with malloc told to give freed tensors back at once;
    it includes what ``saved`` cannot see, such as buffers of kernels. On CUDA
    ``torch.cuda.max_memory_allocated``.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.group_task import GroupTask
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.objective import ObjectiveConfig, StepTerms, group_loss
from chunk_grpo_core.method.replay import replay_step
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.method.stream import Stream
from chunk_grpo_core.method.streaming import accumulate_group
from chunk_grpo_core.models.flux.policy import FluxPolicy
from chunk_grpo_core.models.tiny.model import LATENT_SHAPE, load_tiny_flux
from chunk_grpo_core.models.tiny.world import TRAIN, caption

from .chunk_vs_step.measure import write_json

__all__ = ["METHODS", "Case", "check", "load_policy", "measure", "saved_bytes", "table", "task_of"]

STEPS, GROUP = 16, 12
"""Trainable steps and samples, as in the paper."""
CHUNKS = (1, 2, 4, 8, 16)
LIMIT = 1.1
"""Streamed, 8 steps may take this many times the peak of 1 step."""
MIB = 2**20
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "1000000",
    "MALLOC_MMAP_THRESHOLD_": "16384",  # bytes; without it freed tensors stay resident
    "MALLOC_TRIM_THRESHOLD_": "0",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement, in bytes."""

    device: str
    method: str
    steps: int
    saved: int
    peak: int


class SavedBytes:
    """Counts what autograd holds for backward inside ``with meter.hooks():``."""

    def __init__(self, not_counted: Iterable[Tensor]) -> None:
        self.peak = self._now = 0
        self._not_counted = {tensor.untyped_storage().data_ptr() for tensor in not_counted}
        self._holders: Counter[int] = Counter()

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """See torch: wraps every tensor that is saved until its graph is freed."""
        return torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Held(self, tensor), lambda held: held.tensor
        )

    def hold(self, tensor: Tensor, change: int) -> None:
        """Add (1) or take away (-1) one holder of a tensor's storage."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self._not_counted:
            return
        was_held = self._holders[key] > 0
        self._holders[key] += change
        self._now += ((self._holders[key] > 0) - was_held) * storage.nbytes()
        self.peak = max(self.peak, self._now)


class _Held:
    """A saved tensor that says when it is let go."""

    def __init__(self, meter: SavedBytes, tensor: Tensor) -> None:
        self.tensor, self._meter = tensor, meter
        meter.hold(tensor, 1)

    def __del__(self) -> None:
        self._meter.hold(self.tensor, -1)


def _stream(policy: FluxPolicy, task: GroupTask, config: ObjectiveConfig) -> None:
    policy.run(
        lambda velocity: accumulate_group(
            Stream(velocity, device=policy.device, mixes_times=policy.mixes_times),
            task,
            config,
            scale=1.0,
            is_on_policy=False,
        )
    )


def _one_graph(policy: FluxPolicy, task: GroupTask, config: ObjectiveConfig) -> None:
    """The loss as the objective states it, with all steps of the first chunk in its graph."""
    old = task.trajectory.log_p.T
    new = policy.run(
        lambda velocity: [
            replay_step(velocity, task.trajectory, step, device=policy.device).log_p.cpu()
            for step in range(task.plan.sizes[0])
        ]
    )
    log_p = torch.cat([torch.stack(new, 1), old[:, len(new) :]], 1)
    terms = StepTerms(log_p, torch.zeros_like(old), torch.zeros_like(old))
    group_loss(terms, task.facts(), config).backward()


METHODS: dict[str, Callable[[FluxPolicy, GroupTask, ObjectiveConfig], None]] = {
    "streamed": _stream,
    "one graph": _one_graph,
}


def load_policy(device: str) -> tuple[FluxPolicy, list[Tensor]]:
    """The tiny FLUX with a fresh LoRA, and all weights of both."""
    flux = load_tiny_flux()
    for part in flux.parts().values():
        part.to(device)
    policy = FluxPolicy(
        name="tiny-flux",
        transformer=flux.transformer,
        encode=lambda text: flux.text.encode([text]),
        decode=flux.codec.decode,
        latent_shape=LATENT_SHAPE,
        lora=LoraConfig(rank=16, alpha=32.0),
    )
    return policy, list(flux.transformer.parameters())


def task_of(policy: FluxPolicy, chunk: int, *, steps: int = STEPS, group: int = GROUP) -> GroupTask:
    """A sampled group that trains its first ``chunk`` steps, as one chunk."""
    plan = ChunkPlan((chunk, steps - chunk) if chunk < steps else (steps,))
    trajectory = policy.run(
        lambda velocity: rollout(
            velocity,
            caption(TRAIN[0]),
            shifted_grid(steps + 1, 3.0),
            SdeConfig(),
            Noise(shared_start=True, seed=0, group_size=group),
            LATENT_SHAPE,
            device=policy.device,
        )
    )
    drawn = torch.zeros(group, plan.count, dtype=torch.bool)
    drawn[:, 0] = True
    return GroupTask(trajectory, plan, torch.linspace(-1.0, 1.0, group), drawn)


def saved_bytes(weights: Iterable[Tensor], work: Callable[[], object]) -> int:
    """The most bytes that autograd held for backward at a time during ``work``."""
    meter = SavedBytes(weights)
    with meter.hooks():
        work()
    return meter.peak


def peak_bytes(device: str, work: Callable[[], object]) -> int:
    """The most memory that ``work`` took above the level before it.

    Raises:
        OSError: The device is the CPU and the system is not Linux.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        level = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - level
    Path("/proc/self/clear_refs").write_text("5")  # the highest level is now the present one
    level = _resident("VmRSS")
    work()
    return _resident("VmHWM") - level


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure(device: str, method: str, chunk: int) -> Case:
    """Measure one case in this process."""
    torch.set_num_threads(1)
    policy, weights = load_policy(device)
    config = ObjectiveConfig(clip_low=1e-4, clip_high=1e-4)
    task = task_of(policy, chunk)
    METHODS[method](policy, task_of(policy, 1, group=4), config)  # allocates what then stays

    def work() -> None:
        METHODS[method](policy, task, config)

    peak = peak_bytes(device, work)
    saved = saved_bytes(weights, work)
    return Case(device=device, method=method, steps=chunk, saved=saved, peak=peak)


def check(cases: Sequence[Case]) -> list[str]:
    """Devices and measures in which 8 streamed steps take more than the limit."""
    by_key = {(case.device, case.steps): case for case in cases if case.method == "streamed"}
    failed = []
    for device in dict.fromkeys(case.device for case in cases):
        for name in ("saved", "peak"):
            ratio = getattr(by_key[device, 8], name) / getattr(by_key[device, 1], name)
            if ratio > LIMIT:
                failed.append(f"{device}, {name}: 8 steps take {ratio:.2f} times 1 step")
    return failed


def table(cases: Sequence[Case]) -> str:
    """MiB, and in brackets how many times the memory of one step that is."""
    first = {(case.device, case.method): case for case in reversed(cases)}
    lines = ["| device | method | steps | saved, MiB | peak, MiB |", "|---|---|---|---|---|"]
    for case in cases:
        one = first[case.device, case.method]
        cells = [
            f"{value / MIB:.1f} ({value / of:.2f}x)"
            for value, of in ((case.saved, one.saved), (case.peak, one.peak))
        ]
        lines.append(f"| {case.device} | {case.method} | {case.steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every case in a process of its own."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="chunks of 1 and 8 steps only")
    parser.add_argument("--json", type=Path, help="also write the bytes to this file")
    options = parser.parse_args()
    os.environ.update(_MALLOC)  # read by the C library when a process starts
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        chunks = (1, 8) if options.quick else CHUNKS
        cases = pool.starmap(measure, product(devices, METHODS, chunks), chunksize=1)
    print(table(cases))
    if options.json:
        facts = {"torch": torch.__version__, "group": GROUP, "cases": [asdict(c) for c in cases]}
        write_json(options.json, facts)
    if failed := check(cases):
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
