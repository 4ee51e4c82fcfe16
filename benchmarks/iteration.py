"""An iteration of the trainer against the authors' loop: time, passes, memory, and equal results.

python -m benchmarks.iteration --json benchmarks/results/iteration.json

Both train the tiny FLUX on the CPU from the same weights with the same prompts, noise, chunks and
settings: the preset ``gcpo-script`` as one card sees it (2 prompts of 12 pictures, 17 steps, chunks
2, 3, 4, 7, half of them trained, 2 updates), with a LoRA of rank 16, without checkpointing, on one
thread. ``reference_loop.py`` says what the authors' loop is. Iterations of the two take turns in
one process, each from the same adapter. Losses, gradients, scores and the adapter must agree, or
the script fails. The reward is ``target_colour``: rounding can tip that of the tiny world over.

The same is done with the trainer's blocks compiled (``model.compile``), which those of the authors'
loop are not, and with that loop compiled against itself, so that what the compiler brings can be
told from what the trainer brings. It needs a C++ compiler and takes a few minutes; ``--no-compile``
leaves it out.

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
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .chunk_vs_step.measure import write_json
from .iteration_loops import GROUP, PROMPTS, Ours, Theirs, compare, config_of
from .machine import facts
from .memory import MIB, saved_bytes

__all__ = ["LIMITS", "failures", "run"]

LIMITS = {"speedup": 2.3, "memory_ratio": 1.0, "difference": 1e-4}
"""Least speed-up, most memory, and largest relative difference of gradients."""
COMPILED_LIMITS = {"speedup": 2.8, "memory_ratio": 1.0, "difference": 1e-4}
"""The same for the compiled trainer against the loop as it is."""
_WARM_UP = {False: 1, True: 3}
"""Iterations that are not counted: compiled blocks meet a few shapes first."""


def _loop(name: str) -> Ours | Theirs:
    kind = Ours if name.startswith("ours") else Theirs
    return kind(config_of(), is_compiled=name.endswith("compiled"))


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - processor, time.perf_counter() - clock


def take_turns(iterations: int, names: tuple[str, str]) -> dict[str, Any]:
    """Time two loops after iterations that are not counted, and compare their results."""
    torch.set_num_threads(1)
    loops = {name: _loop(name) for name in names}
    ours, reference = loops.values()
    differences = []

    def turn() -> dict[str, tuple[float, float]]:
        ours.start_from(reference.state_dict())
        spent = {name: _seconds(loop.iterate) for name, loop in loops.items()}
        differences.append(compare(ours, reference))
        return spent

    for _ in range(_WARM_UP[any(name.endswith("compiled") for name in names)]):
        turn()
    for loop in loops.values():
        loop.passes.calls = loop.passes.forward = loop.passes.backward = 0
    turns = [turn() for _ in range(iterations)]
    return {
        "machine": facts(),
        "seconds": {name: [round(one[name][0], 3) for one in turns] for name in names},
        "seconds_of_the_clock": {name: [round(one[name][1], 3) for one in turns] for name in names},
        "passes_per_iteration": {
            name: {
                "calls": loop.passes.calls / iterations,
                "forward": loop.passes.forward / iterations,
                "backward": loop.passes.backward / iterations,
            }
            for name, loop in loops.items()
        },
        "difference": {name: max(one[name] for one in differences) for name in differences[0]},
        "clipped_ratios": reference.clipped if isinstance(reference, Theirs) else None,
    }


def memory_of(name: str) -> dict[str, int]:
    """Bytes that one iteration takes above the level before it, and holds for backward."""
    torch.set_num_threads(1)
    loop = _loop(name)
    loop.gradients = _Forgetful()
    for _ in range(_WARM_UP[name.endswith("compiled")]):
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


def run(iterations: int = 5, *, compiled: bool = True) -> dict[str, Any]:
    """Measure everything, each part in a process of its own."""
    result = {"prompts": PROMPTS, "group": GROUP, **_measured(iterations, "ours", "reference")}
    if compiled:
        result["compiled"] = _measured(iterations, "ours_compiled", "reference")
        result["loop_compiled"] = _measured(iterations, "reference_compiled", "reference")
    return result


def _measured(iterations: int, ours: str, reference: str) -> dict[str, Any]:
    """The first loop against the second."""
    names = (ours, reference)
    timings = _apart(take_turns, iterations, names)
    memory = {name: _apart(memory_of, name) for name in names}
    turns = zip(timings["seconds"][reference], timings["seconds"][ours], strict=True)
    clocks = timings["seconds_of_the_clock"]
    return {
        "speedup": median(theirs / mine for theirs, mine in turns),
        "speedup_of_the_clock": sum(clocks[reference]) / sum(clocks[ours]),
        "memory_ratio": memory[ours]["peak"] / memory[reference]["peak"],
        "saved_ratio": memory[ours]["saved"] / memory[reference]["saved"],
        "memory": memory,
        **timings,
    }


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(work, arguments)


def failures(result: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    failed = _failures(result, LIMITS)
    if "compiled" in result:
        failed += [f"compiled: {one}" for one in _failures(result["compiled"], COMPILED_LIMITS)]
    return failed


def _failures(result: dict[str, Any], limits: dict[str, float]) -> list[str]:
    failed = []
    if result["speedup"] < limits["speedup"]:
        failed.append(f"only {result['speedup']:.2f} times as fast as the reference loop")
    if result["memory_ratio"] > limits["memory_ratio"]:
        failed.append(f"{result['memory_ratio']:.2f} times the memory of the reference loop")
    if not max(result["difference"].values()) <= limits["difference"]:
        failed.append(f"results differ: {result['difference']}")
    return failed


def table(result: dict[str, Any]) -> str:
    """All loops side by side."""
    names = list(result["seconds"])
    titles = [name.replace("ours", "trainer").replace("_", ", ") for name in names]
    rows = [f"| for one iteration | {' | '.join(titles)} |", "|---" * (len(names) + 1) + "|"]
    for title, key in (("processor time, s", "seconds"), ("clock, s", "seconds_of_the_clock")):
        cells = [f"{median(result[key][name]):.2f}" for name in names]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    for key, title in (("calls", "calls of the model"), ("forward", "samples forward")):
        cells = [f"{result['passes_per_iteration'][name][key]:.0f}" for name in names]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    for key, title in (("peak", "peak of all tensors, MiB"), ("saved", "held for backward, MiB")):
        cells = [f"{result['memory'][name][key] / MIB:.1f}" for name in names]
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
    parser.add_argument("--no-compile", action="store_true", help="leave out what is compiled")
    text = "print the ratios alone, as JSON; with a name, also write everything to this file"
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help=text)
    options = parser.parse_args()
    result = run(options.iterations, compiled=not options.no_compile)
    parts = [result, *(result[key] for key in ("compiled", "loop_compiled") if key in result)]
    keys = ("speedup", "speedup_of_the_clock", "memory_ratio", "saved_ratio", "difference")
    for part in parts:
        if options.json != "-":
            print(table(part))
        print(json.dumps({key: part[key] for key in keys}))
    if options.json not in (None, "-"):
        write_json(Path(options.json), result)
    if failed := failures(result):
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
