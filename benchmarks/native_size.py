"""ComfyUI's way at true size: an iteration of a MODEL with random weights, time and memory.

python -m benchmarks.native_size --model flux1-dev --precision fp8 --memory 24    # needs CUDA
python -m benchmarks.native_size --tiny                                           # anywhere

The MODEL, its LoRA, optimiser, self-test and reward are there; a picture is the first channels of
its latent, and texts are random. ``--memory`` caps what PyTorch may take, and ComfyUI is told that
the card has no more. The Check (``chunk-grpo train --check``) is asked first what an iteration will
take; then iterations are timed, of which the first warms up. Operations are counted by PyTorch
while it does, and divided by what one large product reached on the same card. (ComfyUI is found
like in the tests: ``COMFYUI_PATH``.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tools.comfyui.inside import Lab, enter_comfyui
from tools.comfyui.server import ROOT, comfyui_path, server_environment

from .chunk_vs_step.measure import write_json
from .flux_size import forget_peak, matrix_peak
from .machine import facts
from .native_models import MODELS, PRECISIONS, TINY_MODELS, build, conditioning

__all__ = ["measure"]

TEXTS = ("a red fox", "a house by the sea")
_GIB = 2**30


class _Vae:
    """Stands in for a VAE: a picture is the first channels of its latent."""

    def decode(self, latent: Tensor) -> Tensor:
        return torch.sigmoid(latent[:, :3]).movedim(1, -1)


def measure(options: argparse.Namespace, lab: Lab) -> dict[str, Any]:
    """Check and train one setting."""
    core = lab.module
    is_cuda = torch.cuda.is_available() and not options.tiny
    device = torch.device("cuda" if is_cuda else "cpu")
    if options.memory and is_cuda:
        _cap(options.memory)
    model = (TINY_MODELS if options.tiny else MODELS)[options.model]
    pixels = 64 if options.tiny else options.pixels
    config = _config(core, options, model.shift)
    with torch.inference_mode():
        policy = core("nodes.bridge.policy").NativePolicy(
            build(model, "float32" if options.tiny else options.precision),
            _Vae(),
            {text: conditioning(model, number) for number, text in enumerate(TEXTS)},
            (model.channels, pixels // model.scale, pixels // model.scale),
            config.lora,
            0,
            batch=config.batch_size or config.group_size,
            limit=core("nodes.bridge.memory").batch_limit(config.batch_size),
            sigmas=config.grid.sigmas,
        )
        reward = core("chunk_grpo_core.rewards").load_reward("target_colour")
    with torch.inference_mode(False):
        check = core("chunk_grpo_core.runs.check").check_training(
            policy, reward, TEXTS, TEXTS, config, evaluation_seeds=1, limit=policy._limit
        )
        rows: list[dict[str, Any]] = []
        ended = core("chunk_grpo_core.train.events").IterationEnd

        def listen(event: object) -> None:
            if isinstance(event, ended):
                rows.append(dict(event.metrics))  # type: ignore[attr-defined]

        trainer = core("chunk_grpo_core.train.trainer").Trainer(
            policy, reward, TEXTS, config, listener=listen, limit=policy._limit
        )
        with FlopCounterMode(display=False) as counter:
            trainer._iterate()
        forget_peak(device)
        for _ in range(options.iterations):
            trainer._iterate()
    seconds = min(float(row["seconds"]["total"]) for row in rows[1:])
    activations = policy.adapter._activations
    return {
        "seconds": [row["seconds"] for row in rows],
        "forecast_seconds_per_iteration": check.seconds_per_iteration,
        "operations": counter.get_total_flops(),
        "share_of_peak": counter.get_total_flops() / seconds / matrix_peak(device),
        "peak_gib": torch.cuda.max_memory_allocated() / _GIB if is_cuda else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / _GIB if is_cuda else None,
        "blocks_kept": len(activations._kept),
        "blocks_computed_again": activations._recomputed,
        "mixes_times": policy.mixes_times,
        "batch_size": policy._limit.size,
        "ratio_error_first_update": rows[0].get("ratio_error_first_update"),
    }


def _cap(gib: float) -> None:
    """Let nobody take more of the card, and tell ComfyUI."""
    import comfy.model_management as memory

    whole = torch.cuda.get_device_properties(0).total_memory / _GIB
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib / whole))
    total, free = memory.get_total_memory, memory.get_free_memory
    hidden = int(max(0.0, whole - gib) * _GIB)
    memory.get_total_memory = lambda *args, **kwargs: _less(total(*args, **kwargs), hidden)
    memory.get_free_memory = lambda *args, **kwargs: _less(free(*args, **kwargs), hidden)
    memory.total_vram = memory.get_total_memory(memory.get_torch_device()) / 2**20


def _less(found: Any, hidden: int) -> Any:
    if isinstance(found, tuple):
        return tuple(_less(one, hidden) for one in found)
    return max(0, found - hidden)


def _config(core: Any, options: argparse.Namespace, shift: float) -> Any:
    values: dict[str, Any] = {
        "iterations": 1000,
        "prompts_per_iteration": len(TEXTS),
        "group_size": 4 if options.tiny else options.group,
        "batch_size": options.batch,
        "update_batch_size": options.update_batch,
        "lora.rank": options.rank,
        "lora.alpha": 2.0 * options.rank,
    }
    if options.recipe != "quick":
        grid = core("chunk_grpo_core.method.schedule").shifted_grid(options.steps, shift)
        plan = core("chunk_grpo_core.method.chunks").ChunkPlan((1, options.steps - 2))
        values |= {"grid": grid, "plan": plan, "noise": "all", "window.kind": "all"}
    return core("chunk_grpo_core.presets").preset_config(options.recipe, **values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.native_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tiny", action="store_true", help="very small models of the same classes, on the CPU")
    add("--model", choices=MODELS, default="flux1-dev", help="which sizes")
    add("--precision", choices=PRECISIONS, default="fp8", help="how weights are kept")
    add("--pixels", type=int, default=512, help="width and height")
    add("--recipe", choices=("quick", "safe-lora"), default="quick", help="all other settings")
    add("--group", type=int, default=12, help="pictures of a group; there are two groups")
    add("--steps", type=int, default=4, help="of the rollout of safe-lora")
    add("--batch", type=int, default=None, help="samples in a call; what fits by default")
    add("--update-batch", type=int, default=1, help="sample-steps in a call with gradients")
    add("--rank", type=int, default=16, help="of the LoRA")
    add("--memory", type=float, help="GiB that may be taken of the card")
    add("--iterations", type=int, default=1, help="after the first, which warms up")
    add("--json", type=Path, help="also write the numbers to this file")
    add("--inside", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure in a process of its own, which becomes one of ComfyUI's."""
    options = _arguments()
    if not (options.tiny or torch.cuda.is_available()):
        raise SystemExit("this needs a CUDA device, and torch finds none; try it out with --tiny")
    if options.inside is None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.native_size", *sys.argv[1:]]
            command += ["--inside", folder]
            environment = server_environment(Path(folder))
            raise SystemExit(subprocess.run(command, cwd=ROOT, env=environment).returncode)
    lab = enter_comfyui(str(comfyui_path()), options.inside, cpu=options.tiny)
    found = measure(options, lab)
    print(json.dumps(found), flush=True)
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items() if key != "inside"}
        write_json(options.json, {"machine": facts(), "settings": settings, **found})
    sys.stdout.flush()
    os._exit(0)  # ComfyUI's threads would keep the process


if __name__ == "__main__":
    main()
