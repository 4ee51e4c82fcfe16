"""Distil the tiny FLUX to four steps, as a small stand-in for Turbo models.

The student takes its four Euler steps from fresh noise, and learns at each to go in one step where
four steps of the teacher lead from the same state. Some samples lie further along the straight line
to that place (piecewise rectified flow), so that more steps than four are defined too, as they are
for the models that people use.

Legend: B paths in a batch; a piece is one of the student's four steps.

References:
    PeRFlow: Piecewise Rectified Flow as Universal Plug-and-Play Accelerator (Yan et al., 2024),
    arXiv 2405.07510. There each piece starts from noised pictures; here from the student's own
    state, because there are no pictures.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.method.walk import walk_to_end
from chunk_grpo_core.models.flux.policy import predict_velocity
from chunk_grpo_core.models.tiny.model import (
    LATENT_SHAPE,
    SHIFT,
    TinyFlux,
    load_tiny_flux,
    save_tiny_flux,
)
from chunk_grpo_core.models.tiny.world import TRAIN, caption

__all__ = ["PIECES", "DistilSettings", "distil", "piece_end", "student_file"]

PIECES = 4
"""Steps of the student."""
Pair = tuple[float, float]


@dataclass(frozen=True)
class DistilSettings:
    """How long; all else is said below."""

    teacher_steps: int = 16
    """A multiple of 4, so that the student's noise levels are among the teacher's."""
    steps: int = 160
    batch: int = 24
    """Paths in a step, from fresh noise: a student that saw paths twice learnt them by heart."""
    on_lines: int = 6
    """How many of them also train at a point of the line through every piece."""
    learning_rate: float = 2e-3
    average: float = 0.95
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
        Processor seconds, and the mean loss of the last steps.
    """
    begin = time.process_time()
    student = load_tiny_flux()
    loss = _train(load_tiny_flux(), student, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tiny_flux(student, path, {"settings": repr(asdict(settings))})
    return {"seconds": round(time.process_time() - begin), "loss": loss}


@torch.no_grad()
def piece_end(
    teacher: TinyFlux, conditioning: tuple[Tensor, Tensor], x_t: Tensor, pairs: Sequence[Pair]
) -> Tensor:
    """Where the teacher's steps through one piece lead from x_t, (B, C, h, w)."""

    def velocity(x: Tensor, t: float) -> Tensor:
        times = torch.full((len(x),), t)
        return predict_velocity(teacher.transformer, x, times, *conditioning)

    return walk_to_end(velocity, x_t, pairs)


def _train(teacher: TinyFlux, student: TinyFlux, settings: DistilSettings) -> float:
    """Train the transformer in place; it ends as the average of its weights.

    Returns:
        The mean loss of the last 20 steps, over the student's own states.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    transformer = student.transformer.train().requires_grad_(True)
    weights = list(transformer.parameters())
    averages = [weight.detach().clone() for weight in weights]
    optimisers = _optimisers(transformer)
    texts = [caption(scene) for scene in TRAIN]
    losses = []
    for step in range(settings.steps):
        ramp = min(1.0, (step + 1) / 10)
        cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = settings.learning_rate * ramp * cosine
            optimiser.zero_grad()
        chosen = torch.randint(len(texts), (settings.batch,), generator=generator)
        conditioning = student.text.encode([texts[i] for i in chosen])
        noise = torch.randn(settings.batch, *LATENT_SHAPE, generator=generator)
        inside = torch.rand(settings.on_lines, generator=generator)
        losses.append(_step(teacher, transformer, conditioning, noise, inside, settings))
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        _average(averages, weights, min(settings.average, (step + 1) / (step + 10)))
    _average(weights, averages, 0.0)
    transformer.eval().requires_grad_(False)
    return sum(losses[-20:]) / len(losses[-20:])


def _step(
    teacher: TinyFlux,
    transformer: nn.Module,
    conditioning: tuple[Tensor, Tensor],
    x_t: Tensor,
    inside: Tensor,
    settings: DistilSettings,
) -> float:
    """Add the gradient of one batch, and return the mean loss over the student's own states.

    Args:
        teacher: The model that is followed.
        transformer: The student's.
        conditioning: Features of B captions.
        x_t: Noise, (B, C, h, w).
        inside: How far along the lines of the first samples the further points lie, in 0..1.
        settings: How many steps the teacher takes.
    """
    every = settings.teacher_steps // PIECES
    pairs, total, count = shifted_grid(settings.teacher_steps, SHIFT).pairs(), 0.0, len(inside)
    both = tuple(torch.cat([part, part[:count]]) for part in conditioning)
    for piece, (t, s) in enumerate(shifted_grid(PIECES, SHIFT).pairs()):
        end = piece_end(teacher, conditioning, x_t, pairs[piece * every : (piece + 1) * every])
        line = (end - x_t) / (s - t)
        between = torch.lerp(x_t[:count], end[:count], inside[:, None, None, None])
        times = torch.cat([torch.full((len(x_t),), t), t + (s - t) * inside])
        v_t = predict_velocity(transformer, torch.cat([x_t, between]), times, *both)
        target = torch.cat([line, line[:count]])
        error = (v_t - target).square().flatten(1).mean(1)
        (error.mean() / PIECES).backward()
        x_t = (x_t + (s - t) * v_t[: len(x_t)]).detach()
        total += float(error.detach()[: len(x_t)].mean()) / PIECES
    return total


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
