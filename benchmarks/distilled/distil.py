"""Distil the tiny FLUX to four steps, as a small stand-in for Turbo models.

The teacher walks the ODE in 32 steps, and its path is cut at the noise levels of the student's four
steps. From the same noise the student takes its own four, and learns at each to go straight to
where the teacher's piece ends, so that it corrects what its earlier steps missed. Some samples lie
on the straight line through a piece instead (piecewise rectified flow), so that more steps than
four are defined too, as they are for the models that people use.

Legend: D paths, K = 4 pieces.

References:
    PeRFlow: Piecewise Rectified Flow as Universal Plug-and-Play Accelerator (Yan et al., 2024),
    arXiv 2405.07510. There each piece starts from noised pictures; here it starts from the
    teacher's own state, because there are no pictures.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.method.walk import walk
from chunk_grpo_core.models.flux.policy import predict_velocity
from chunk_grpo_core.models.tiny.model import (
    LATENT_SHAPE,
    SHIFT,
    TinyFlux,
    load_tiny_flux,
    save_tiny_flux,
)
from chunk_grpo_core.models.tiny.world import TRAIN, caption

__all__ = ["PIECES", "DistilSettings", "distil", "student_file"]

PIECES = 4
"""Steps of the student."""
_PATH_BATCH = 64


@dataclass(frozen=True)
class DistilSettings:
    """How long; all else is said below."""

    paths: int = 3072
    """D, 8 for each of the 384 training captions."""
    teacher_steps: int = 32
    """A multiple of 4, so that the student's noise levels are among the teacher's."""
    steps: int = 450
    batch: int = 16
    """Paths in a step, each at all four of the student's states."""
    on_lines: int = 4
    """Further paths in a step, each at a point of the line through every piece."""
    learning_rate: float = 1e-3
    average: float = 0.98
    """Decay of the average of weights that becomes the student."""
    seed: int = 0


def student_file() -> Path:
    """Where the student is kept: made once, outside the repository."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "chunk-grpo-benchmarks" / "distilled_tiny_flux.safetensors"


def distil(path: Path, settings: DistilSettings) -> dict[str, object]:
    """Make a student and write it as an asset of the tiny FLUX.

    Args:
        path: File to write; its folder is made.
        settings: How long.

    Returns:
        Processor seconds of both halves, and the mean loss of the last 50 steps.
    """
    begin = time.process_time()
    states, captions = _paths(settings)
    middle = time.process_time()
    student = load_tiny_flux()
    loss = _train(student, states, captions, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tiny_flux(student, path, {"settings": repr(asdict(settings))})
    end = time.process_time()
    return {"paths": round(middle - begin), "training": round(end - middle), "loss": loss}


@torch.no_grad()
def _paths(settings: DistilSettings) -> tuple[Tensor, list[str]]:
    """States of the teacher at the ends of the pieces, (K + 1, D, C, h, w), and D captions."""
    teacher, generator = load_tiny_flux(), torch.Generator().manual_seed(settings.seed)
    texts = [caption(scene) for scene in TRAIN]
    captions = [texts[i % len(texts)] for i in range(settings.paths)]
    noise = torch.randn(settings.paths, *LATENT_SHAPE, generator=generator)
    every, pairs = settings.teacher_steps // PIECES, shifted_grid(settings.teacher_steps, SHIFT)
    columns = []
    for start in range(0, settings.paths, _PATH_BATCH):
        part = slice(start, start + _PATH_BATCH)
        features, pooled = teacher.text.encode(captions[part])

        def velocity(x_t: Tensor, t: float, features=features, pooled=pooled) -> Tensor:
            times = torch.full((len(x_t),), t)
            return predict_velocity(teacher.transformer, x_t, times, features, pooled)

        steps = [step.x_s for step in walk(velocity, noise[part], pairs.pairs())]
        columns.append(torch.stack([noise[part], *steps[every - 1 :: every]]))
    return torch.cat(columns, dim=1), captions


def _train(
    student: TinyFlux, states: Tensor, captions: list[str], settings: DistilSettings
) -> float:
    """Train the transformer in place; it ends as the average of its weights.

    Returns:
        The mean loss of the last 50 steps, over the student's own states.
    """
    generator = torch.Generator().manual_seed(settings.seed + 1)
    transformer = student.transformer.train().requires_grad_(True)
    weights = list(transformer.parameters())
    averages = [weight.detach().clone() for weight in weights]
    optimisers = _optimisers(transformer)
    with torch.no_grad():
        features, pooled = student.text.encode(captions)
    losses = []
    for step in range(settings.steps):
        ramp = min(1.0, (step + 1) / 30)
        cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = settings.learning_rate * ramp * cosine
            optimiser.zero_grad()
        count = settings.batch + settings.on_lines
        path = torch.randint(settings.paths, (count,), generator=generator)
        inside = torch.rand(count, generator=generator)
        inside[: settings.batch] = 0.0
        x_t, loss = states[0, path[: settings.batch]], 0.0
        for piece, (t, s) in enumerate(shifted_grid(PIECES, SHIFT).pairs()):
            first, last = states[piece, path], states[piece + 1, path]
            on_line = torch.lerp(first, last, inside[:, None, None, None])[settings.batch :]
            times = torch.lerp(torch.full((count,), t), torch.full((count,), s), inside)
            to_end = (s - times)[:, None, None, None]
            x = torch.cat([x_t, on_line])
            v_t = predict_velocity(transformer, x, times, features[path], pooled[path])
            error = (v_t - (last - x) / to_end).square().flatten(1).mean(1)
            (error.mean() / PIECES).backward()
            x_t = (x + to_end * v_t).detach()[: settings.batch]
            loss += float(error.detach()[: settings.batch].mean()) / PIECES
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        _average(averages, weights, min(settings.average, (step + 1) / (step + 10)))
        losses.append(loss)
    _average(weights, averages, 0.0)
    transformer.eval().requires_grad_(False)
    return sum(losses[-50:]) / len(losses[-50:])


def _optimisers(transformer: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else, as in pre-training."""
    named = list(transformer.named_parameters())
    hidden = [p for name, p in named if p.ndim == 2 and "blocks" in name]
    rest = [p for name, p in named if p.ndim != 2 or "blocks" not in name]
    return [
        torch.optim.Muon(hidden, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, weight_decay=0.0),
    ]


@torch.no_grad()
def _average(averages: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """Keep ``decay`` of the averages and take the rest from the weights, in place."""
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, 1 - decay)
