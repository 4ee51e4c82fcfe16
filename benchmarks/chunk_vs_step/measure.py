"""One run: train, sample held-out captions, keep every number. Also the curves of all rules."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.measure.sampling import roll_out
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.dynamics import DynamicsCurve, dynamics_curve
from chunk_grpo_core.method.noise import derive_seed
from chunk_grpo_core.method.rules import RULES, SdeConfig
from chunk_grpo_core.models.tiny.model import LATENT_SHAPE, TinyFlux, load_tiny_flux, sample_latents
from chunk_grpo_core.models.tiny.reward import TinyWorldReward
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.trainer import Trainer
from chunk_grpo_core.watch.history import MetricsWriter, read_metrics

from ..tiny import checkerboard, flux_and_policy, saturation
from .design import CHOOSING, GRID, SDE, TESTING, TRAINING, Run, config_of

__all__ = ["measure_base", "measure_curves", "perform", "read_curve", "write_json"]

_BATCH = 32
_NOISE_SEED = 20_000
_KEPT = ("reward_mean", "clip_fraction", "ratio_max_deviation", "approx_kl", "grad_norm")


def write_json(path: Path, data: object) -> None:
    """Write a file that is either whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_curve(path: Path) -> DynamicsCurve:
    """Read the curve of the training sampler from curves.json."""
    return DynamicsCurve.from_json(json.loads(path.read_text(encoding="utf-8"))[SDE.rule])


def measure_curves() -> dict[str, object]:
    """Relative-L1 curves of the base model under every rule, by rule name."""
    _, policy = flux_and_policy(LoraConfig(), 0)
    curves, prompts = {}, TRAINING[:8]
    seeds = [derive_seed("curve", index) for index in range(len(prompts))]
    for rule in RULES:
        sde = SdeConfig(rule=rule, eta=SDE.eta)
        groups = roll_out(policy, prompts, GRID, sde, group_size=12, seeds=seeds)
        curves[rule] = dynamics_curve(groups, policy.name).to_json()
    return curves


def _quality(images: Tensor) -> dict[str, Tensor]:
    """Signs of damage, one number for each picture (B, H, W, 3): grid and saturation."""
    return {"grid": checkerboard(images), "saturation": saturation(images)}


@torch.no_grad()
def _judge(flux: TinyFlux, captions: list[str], seeds: int) -> dict[str, list[float]]:
    """Mean of each measure over the seeds, for each caption."""
    prompts = [text for text in captions for _ in range(seeds)]
    noise = torch.cat(
        [
            torch.randn(
                seeds, *LATENT_SHAPE, generator=torch.Generator().manual_seed(_NOISE_SEED + i)
            )
            for i in range(len(captions))
        ]
    )
    batches: list[dict[str, Tensor]] = []
    for start in range(0, len(prompts), _BATCH):
        part = slice(start, start + _BATCH)
        latents = sample_latents(flux, noise[part], prompts[part], GRID.steps)
        images = flux.codec.decode(latents).clamp(0, 1)
        score = TinyWorldReward().score(images, prompts[part])
        batches.append({"reward": score.values, **score.extras, **_quality(images)})
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    return {
        name: [round(v, 6) for v in values.view(len(captions), seeds).mean(1).tolist()]
        for name, values in joined.items()
    }


def _captions(sweep: bool) -> tuple[list[str], int]:
    return (CHOOSING, 4) if sweep else (TESTING, 2)


def measure_base() -> dict[str, object]:
    """The base model on both sets of captions."""
    flux = load_tiny_flux()
    return {name: _judge(flux, *_captions(name == "sweep")) for name in ("sweep", "main")}


def _stop_when_orphaned(parent: int) -> Callable[[], None]:
    """A worker whose study was killed must not go on for hours by itself."""

    def check() -> None:
        if os.getppid() != parent:
            raise Cancelled

    return check


def perform(run: Run, curves: Path, results: Path, work: Path) -> str:
    """Do one run, or go on with it, and write ``results/<name>.json``; returns the name."""
    torch.set_num_threads(1)
    target = results / f"{run.name}.json"
    if target.exists():
        return run.name
    config = config_of(run, read_curve(curves))
    flux, policy = flux_and_policy(config.lora, run.seed)
    folder = RunFolder(work / run.name)
    trainer = Trainer(
        policy,
        TinyWorldReward(),
        TRAINING,
        config,
        checkpoints=folder.checkpoints,
        listener=MetricsWriter(folder.metrics_file),
        check_cancel=_stop_when_orphaned(os.getppid()),
    )
    trainer.resume()
    trainer.train()
    rows = read_metrics(folder.metrics_file)
    write_json(
        target,
        {
            "run": asdict(run),
            "config": config.flat(),
            "trained_passes": sum(row["trained_passes"] for row in rows),
            "seconds": round(sum(row["seconds"]["total"] for row in rows), 1),
            "ratio_error_first_update": max(row["ratio_error_first_update"] for row in rows),
            "rows": [{key: row[key] for key in _KEPT} for row in rows],
            "held_out": _judge(flux, *_captions(run.sweep)),
        },
    )
    shutil.rmtree(folder.path)
    return run.name
