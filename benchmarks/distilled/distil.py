"""Distil the tiny FLUX to four steps, as a small stand-in for Turbo models.

Piecewise rectified flow: the teacher walks the ODE in 32 steps; its path is cut at the noise levels
of the student's four steps, and in each of the four pieces the student learns the straight line
from the path's first state to its last. Four Euler steps then end where the teacher's 32 end. Lines
are learnt at every time, so that more steps than four are defined too, as they are for the models
that people use.

Legend: D paths, B of them in a batch, K = 4 pieces.

References:
    PeRFlow: Piecewise Rectified Flow as Universal Plug-and-Play Accelerator (Yan et al., 2024),
    arXiv 2405.07510. There each piece starts from noised pictures; here it starts from the
    teacher's own state, because there are no pictures.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
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
    steps: int = 900
    batch: int = 64
    learning_rate: float = 1e-3
    average: float = 0.99
    """Decay of the average of weights that becomes the student."""
    at_start: float = 0.5
    """Part of the samples at the first time of their piece, where four steps look."""
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


def _batches(settings: DistilSettings) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each step: numbers of paths, numbers of pieces, and how far into the piece, all (B,)."""
    generator = torch.Generator().manual_seed(settings.seed + 1)
    size = (settings.batch,)
    for _ in range(settings.steps):
        path = torch.randint(settings.paths, size, generator=generator)
        piece = torch.randint(PIECES, size, generator=generator)
        inside = torch.rand(size, generator=generator)
        is_start = torch.rand(size, generator=generator) < settings.at_start
        yield path, piece, torch.where(is_start, 0.0, inside)


def _train(
    student: TinyFlux, states: Tensor, captions: list[str], settings: DistilSettings
) -> float:
    """Train the transformer in place; it ends as the average of its weights."""
    levels = torch.tensor(shifted_grid(PIECES, SHIFT).sigmas)
    transformer = student.transformer.train().requires_grad_(True)
    weights = list(transformer.parameters())
    averages = [weight.detach().clone() for weight in weights]
    optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    losses = []
    with torch.no_grad():
        features, pooled = student.text.encode(captions)
    for step, (path, piece, inside) in enumerate(_batches(settings)):
        progress = step / settings.steps
        ramp, cosine = min(1.0, (step + 1) / 30), 0.5 * (1 + math.cos(math.pi * progress))
        optimiser.param_groups[0]["lr"] = settings.learning_rate * ramp * cosine
        first, last = states[piece, path], states[piece + 1, path]
        t, s = levels[piece], levels[piece + 1]
        line = (last - first) / (s - t)[:, None, None, None]
        x_t = torch.lerp(first, last, inside[:, None, None, None])
        v_t = predict_velocity(
            transformer, x_t, torch.lerp(t, s, inside), features[path], pooled[path]
        )
        loss = (v_t - line).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        with torch.no_grad():
            rate = min(settings.average, (step + 1) / (step + 10))
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, 1 - rate)
        losses.append(loss.item())
    with torch.no_grad():
        for average, weight in zip(averages, weights, strict=True):
            weight.copy_(average)
    transformer.eval().requires_grad_(False)
    return sum(losses[-50:]) / len(losses[-50:])
