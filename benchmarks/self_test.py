"""Cost of the self-test before the first update, as a share of the first iteration.

python -m benchmarks.self_test --json benchmarks/results/self_test.json

The paper's sizes: groups of 12 samples, 17 steps, half of the chunks. The self-test costs the same
whatever the number of prompts in an iteration, so the share is measured with the default number,
for which in float32 the limit of 5 % holds, and with a single prompt, the least there can be. The
tiny FLUX, through diffusers and through ComfyUI's own blocks (found like in the tests:
``COMFYUI_PATH``).
Each case runs three times, each in a process of its own, on one thread; the run with the largest
share counts. Counted is processor time, which depends less than a clock on what else the machine
does. Calls of the model are those of the self-test, each with two samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from chunk_grpo_core.models.tiny.model import LATENT_SHAPE
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from tools.comfyui.inside import Lab, enter_comfyui
from tools.comfyui.server import ROOT, comfyui_path, server_environment

from .chunk_vs_step.measure import write_json
from .memory import load_policy

__all__ = ["CASES", "TEXTS", "Case", "check", "measure", "native_policy", "table"]

STEPS, GROUP, CHUNKS = 17, 12, (2, 3, 4, 7)
"""As in the paper; the last step is not trained."""
DEFAULT, SINGLE = 4, 1
"""Prompts in an iteration: what TrainConfig and Train LoRA begin with, and the least."""
TEXTS = tuple(caption(scene) for scene in TRAIN[:DEFAULT])
RUNS = 3
LIMIT = 0.05
DIFFUSERS, COMFYUI = "diffusers", "ComfyUI"
CASES = tuple(
    (*model, prompts)
    for prompts in (DEFAULT, SINGLE)
    for model in (
        (DIFFUSERS, "float32"),
        (DIFFUSERS, "bfloat16"),
        (COMFYUI, "float32"),
        (COMFYUI, "bfloat16"),
    )
)
"""Blocks, type of weights, and prompts in an iteration."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement, in seconds of processor time."""

    blocks: str
    weights: str
    prompts: int
    """In an iteration."""
    iteration: float
    """The first iteration, with the self-test in it."""
    rewards: float
    """Checks of pictures and scores."""
    gradients: float
    """Checks of gradients and log-densities."""
    calls: int
    """Of the model by the self-test, without gradients."""
    backward: int
    """The same with gradients."""

    @property
    def self_test(self) -> float:
        """Both checks."""
        return self.rewards + self.gradients

    @property
    def share(self) -> float:
        """Of the self-test in the iteration."""
        return self.self_test / self.iteration


def measure(blocks: str, weights: str, prompts: int, stubs: Path) -> Case:
    """Measure one case; this process is then one of ComfyUI's if the blocks are."""
    torch.set_num_threads(1)
    if blocks == DIFFUSERS:
        policy, _ = load_policy("cpu")
        policy.transformer.to(getattr(torch, weights))
        timed = _measure(policy, prompts, lambda name: f"chunk_grpo_core.{name}")
        return Case(blocks=blocks, weights=weights, prompts=prompts, **timed)
    lab = enter_comfyui(str(comfyui_path()), str(stubs))
    pack = lab.module("chunk_grpo_core").__name__
    timed = _measure(native_policy(lab, weights), prompts, lambda name: f"{pack}.{name}")
    return Case(blocks=blocks, weights=weights, prompts=prompts, **timed)


def native_policy(lab: Lab, weights: str) -> Any:
    """The tiny FLUX as ComfyUI's MODEL, with a LoRA of rank 16."""
    tiny = lab.module("nodes.bridge.tiny")
    with torch.inference_mode():  # as in a node
        model, clip, vae = tiny.load_tiny()
        typed = tiny.empty_model(getattr(torch, weights), None)
        typed.model.diffusion_model.load_state_dict(model.model.diffusion_model.state_dict())
        return lab.module("nodes.bridge.policy").NativePolicy(
            typed,
            vae,
            {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in TEXTS},
            LATENT_SHAPE,
            lab.module("chunk_grpo_core.lora.adapter").LoraConfig(rank=16, alpha=32.0),
            0,
            batch=GROUP,
        )


def _measure(policy: Any, prompts: int, named: Callable[[str], str]) -> dict[str, Any]:
    def core(name: str) -> Any:
        return import_module(named(name))

    trainer, tests = core("train.trainer"), core("train.self_test").SelfTests
    spent: dict[str, float] = {}
    calls = {False: 0, True: 0}

    def timed(name: str) -> None:
        plain = getattr(tests, name)

        def method(*args: object) -> None:
            start = time.process_time()
            plain(*args)
            spent[name] = spent.get(name, 0.0) + time.process_time() - start

        setattr(tests, name, method)

    def counted(velocity: Callable) -> Callable:
        def call(*inputs: object) -> object:
            calls[torch.is_grad_enabled()] += 1
            return velocity(*inputs)

        return call

    timed("check_rewards")
    timed("check_gradients")
    check = tests.check_gradients
    tests.check_gradients = lambda self, stream, *others: check(
        self, replace(stream, velocity=counted(stream.velocity)), *others
    )
    config = core("train.config").TrainConfig(
        grid=core("method.schedule").shifted_grid(STEPS, 3.0),
        plan=core("method.chunks").ChunkPlan(CHUNKS),
        optimizer=core("train.config").OptimizerConfig(updates_per_rollout=min(2, prompts)),
        iterations=1,
        prompts_per_iteration=prompts,
        group_size=GROUP,
    )
    reward = core("rewards").load_reward("target_colour")
    start = time.process_time()
    trainer.Trainer(policy, reward, TEXTS[:prompts], config).train()
    iteration = time.process_time() - start
    return {
        "iteration": iteration,
        "rewards": spent["check_rewards"],
        "gradients": spent["check_gradients"],
        "calls": calls[False],
        "backward": calls[True],
    }


def check(cases: Sequence[Case]) -> list[str]:
    """Cases in float32 with the default number of prompts in which it takes more than the limit."""
    return [
        f"{case.blocks}, {case.weights}: the self-test takes {case.share:.1%} of an iteration"
        for case in cases
        if case.weights == "float32" and case.prompts == DEFAULT and case.share > LIMIT
    ]


def table(cases: Sequence[Case]) -> str:
    """Seconds of processor time, calls and share of each case."""
    head = (
        "| blocks | weights | prompts | iteration, s | pictures and scores, s | "
        "gradients, s | calls | with gradients | share |"
    )
    rows = [
        f"| {c.blocks} | {c.weights} | {c.prompts} | {c.iteration:.1f} | {c.rewards:.2f} | "
        f"{c.gradients:.2f} | {c.calls} | {c.backward} | {c.share:.1%} |"
        for c in cases
    ]
    return "\n".join([head, "|---" * 9 + "|", *rows])


def _in_own_process(blocks: str, weights: str, prompts: int) -> Case:
    with tempfile.TemporaryDirectory() as folder:
        environment = server_environment(Path(folder)) if blocks == COMFYUI else dict(os.environ)
        case = ["--case", blocks, weights, str(prompts), folder]
        command = [sys.executable, "-m", "benchmarks.self_test", *case]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    return Case(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure every case in a process of its own."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.self_test",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one run of each case")
    parser.add_argument("--json", type=Path, help="also write the seconds to this file")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        blocks, weights, prompts, stubs = options.case
        print(json.dumps(asdict(measure(blocks, weights, int(prompts), Path(stubs)))))
        return
    runs = [[_in_own_process(*case) for _ in range(1 if options.quick else RUNS)] for case in CASES]
    cases = [max(repeated, key=lambda case: case.share) for repeated in runs]
    print(table(cases))
    if options.json:
        facts = {"torch": torch.__version__, "group": GROUP, "steps": STEPS}
        rows = [asdict(case) | {"share": case.share} for repeated in runs for case in repeated]
        write_json(options.json, {**facts, "runs": rows})
    if failed := check(cases):
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
