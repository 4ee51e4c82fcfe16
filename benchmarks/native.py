"""What ComfyUI's way costs against the library's: one iteration on the same tiny weights.

python -m benchmarks.native --json benchmarks/results/native.json

Groups of 12, 17 steps, chunks of 2, 3, 4, 7, half of them trained; without the self-test. Each case
runs three times, in turns, in a process of its own, on one thread; the median counts. Seconds are
processor time, calls and samples those of the transformer. *Computed again* is ComfyUI's way
without memory for activations: every block runs once more in backward. (ComfyUI is found like in
the tests: ``COMFYUI_PATH``.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tools.comfyui.inside import enter_comfyui
from tools.comfyui.server import ROOT, comfyui_path, server_environment

from .chunk_vs_step.measure import write_json
from .machine import facts
from .memory import load_policy
from .self_test import TEXTS, native_policy

__all__ = ["CASES", "measure"]

LIBRARY, NATIVE, AGAIN = "library", "ComfyUI", "ComfyUI, computed again"
CASES = [(way, prompts) for prompts in (4, 1) for way in (LIBRARY, NATIVE, AGAIN)]
RUNS = 3


def measure(way: str, prompts: int, stubs: Path) -> dict[str, Any]:
    """Measure one iteration; this process is then one of ComfyUI's if the way is."""
    torch.set_num_threads(1)
    if way == LIBRARY:
        policy, _ = load_policy("cpu")
        return _iteration(policy, policy.transformer, prompts, "chunk_grpo_core")
    lab = enter_comfyui(str(comfyui_path()), str(stubs))
    policy = native_policy(lab, "float32")
    if way == AGAIN:
        policy.adapter._activations.give_up()
    name = lab.module("chunk_grpo_core").__name__
    return _iteration(policy, policy._model.model.diffusion_model, prompts, name)


def _iteration(policy: Any, network: torch.nn.Module, prompts: int, core: str) -> dict[str, Any]:
    def module(name: str) -> Any:
        return import_module(f"{core}.{name}")

    config = module("train.config")
    settings = config.TrainConfig(
        grid=module("method.schedule").shifted_grid(17, 3.0),
        plan=module("method.chunks").ChunkPlan((2, 3, 4, 7)),
        optimizer=config.OptimizerConfig(updates_per_rollout=min(2, prompts)),
        iterations=1,
        prompts_per_iteration=prompts,
        group_size=12,
        self_test=False,
    )
    calls: list[tuple[int, bool]] = []

    def count(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = inputs[0] if inputs else next(iter(named.values()))
        calls.append((len(first), torch.is_grad_enabled()))

    network.register_forward_pre_hook(count, with_kwargs=True)
    reward = module("rewards").load_reward("target_colour")
    trainer = module("train.trainer").Trainer(policy, reward, TEXTS[:prompts], settings)
    start = time.process_time()
    trainer.train()
    return {
        "seconds": round(time.process_time() - start, 3),
        "calls": len(calls),
        "samples": sum(size for size, _ in calls),
        "calls_with_gradients": sum(grads for _, grads in calls),
    }


def _in_own_process(way: str, prompts: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ) if way == LIBRARY else server_environment(Path(folder))
        case = ["--case", way, str(prompts), folder]
        command = [sys.executable, "-m", "benchmarks.native", *case]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure every case, print a table, and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        way, prompts, stubs = options.case
        print(json.dumps(measure(way, int(prompts), Path(stubs))))
        return
    found: dict[tuple[str, int], list[dict[str, Any]]] = {case: [] for case in CASES}
    for _ in range(RUNS):
        for case, rows in found.items():
            rows.append(_in_own_process(*case))
    result = []
    for (way, prompts), rows in found.items():
        seconds = median(row["seconds"] for row in rows)
        own = median(row["seconds"] for row in found[LIBRARY, prompts])
        row = rows[0] | {"way": way, "prompts": prompts, "seconds": seconds}
        row |= {"runs": [r["seconds"] for r in rows], "of_library": round(seconds / own, 2)}
        result.append(row)
        print(
            f"{prompts} prompts, {way:24} {seconds:6.2f} s ({row['of_library']:.2f}), "
            f"{row['calls']} calls, {row['samples']} samples"
        )
    if options.json:
        write_json(options.json, {"machine": facts(), "rows": result})


if __name__ == "__main__":
    main()
