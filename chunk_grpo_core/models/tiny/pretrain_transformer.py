"""Second stage of pre-training: the transformer and the text encoder, on latents of the codec.

Captions are made wrong on purpose: each attribute is replaced by another value with some
probability, more often at first. So the model learns to draw well but to follow captions only
partly, and a reward has something left to improve. Pictures and captions of held-out scenes never
occur.

Legend: B pictures in a batch, D pictures in the data set.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..flux.policy import predict_velocity
from .model import SHIFT, TinyFlux
from .render import render_indices
from .text import TEXT_LENGTH, tokenize
from .world import ATTRIBUTES, TRAIN, caption, indices_of

__all__ = ["TransformerSettings", "mislabel", "train_transformer"]

_LOG = logging.getLogger(__name__)
_SIZES = tuple(len(values) for values in ATTRIBUTES.values())


@dataclass(frozen=True)
class TransformerSettings:
    """Settings of :func:`train_transformer`. Probabilities in 0..1, sizes > 0."""

    steps: int = 5400
    batch: int = 64
    pictures: int = 38_400
    lr: float = 4e-3
    ema: float = 0.995
    caption_noise: float = 0.35
    """Probability to replace an attribute of a caption. Wrong captions that are not in the
    training split are drawn again, which lowers the effective rate a little."""
    late_caption_noise: float = 0.2
    """The same from step ``late_from`` on."""
    late_from: int = 2500
    empty_captions: float = 0.05
    report_every: int = 500


def _codes(indices: Tensor) -> Tensor:
    """One number for each row of 5 attribute indices."""
    code = torch.zeros(len(indices), dtype=torch.long)
    for column, size in enumerate(_SIZES):
        code = code * size + indices[:, column]
    return code


def mislabel(indices: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Replace attributes by other values; every result is a scene of the training split.

    Args:
        indices: int64, shape (B, 5), rows of the training split.
        rate: Probability for each attribute, in 0..1.
        generator: Source of randomness.

    Returns:
        int64, shape (B, 5).
    """
    allowed = torch.zeros(math.prod(_SIZES), dtype=torch.bool)
    allowed[_codes(indices_of(TRAIN))] = True
    sizes, out = torch.tensor(_SIZES), indices.clone()
    todo = torch.arange(len(indices))
    while len(todo):
        rows = indices[todo]
        other = 1 + (torch.rand(rows.shape, generator=generator) * (sizes - 1)).long()
        hit = torch.rand(rows.shape, generator=generator) < rate
        out[todo] = torch.where(hit, (rows + other) % sizes, rows)
        todo = todo[~allowed[_codes(out[todo])]]
    return out


@torch.no_grad()
def _data(flux: TinyFlux, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Attribute indices (D, 5) and latents (D, 16, 8, 8) of random training scenes."""
    table = indices_of(TRAIN)
    indices = table[torch.randint(len(table), (size,), generator=generator)]
    latents = [flux.codec.encode(render_indices(part, generator)) for part in indices.split(256)]
    return indices, torch.cat(latents)


def _tokens_by_code() -> Tensor:
    """Tokens of each training caption at the row of its code; other rows are padding."""
    table = torch.zeros(math.prod(_SIZES), TEXT_LENGTH, dtype=torch.long)
    table[_codes(indices_of(TRAIN))] = tokenize([caption(scene) for scene in TRAIN])
    return table


def _optimisers(flux: TinyFlux, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    named = list(flux.transformer.named_parameters())
    hidden = [p for name, p in named if p.ndim == 2 and "blocks" in name]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen] + list(flux.text.parameters())
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _times(size: int, generator: torch.Generator) -> Tensor:
    """Training times (B,): logit-normal, then the sampler's shift."""
    t = torch.sigmoid(1.2 * torch.randn(size, generator=generator))
    return SHIFT * t / (1 + (SHIFT - 1) * t)


def train_transformer(
    flux: TinyFlux,
    settings: TransformerSettings,
    seed: int,
    report: Callable[[TinyFlux, int], None],
    first_step: int = 0,
) -> TinyFlux:
    """Train transformer and text encoder; the codec stays as it is.

    Args:
        flux: Fresh transformer and text encoder, trained codec. Trained in place.
        settings: How long and how.
        seed: Seed of data, captions, times and noise.
        report: Called with the averaged model and the number of steps done, now and then and at
            the end.
        first_step: Steps that ``flux`` has behind it already; optimisers start afresh.

    Returns:
        The averaged (EMA) model.
    """
    generator = torch.Generator().manual_seed(seed + first_step)
    indices, latents = _data(flux, settings.pictures, generator)
    words = _tokens_by_code()
    average = TinyFlux(copy.deepcopy(flux.transformer), copy.deepcopy(flux.text), flux.codec)
    live = [*flux.transformer.parameters(), *flux.text.parameters()]
    slow = [*average.transformer.parameters(), *average.text.parameters()]
    optimisers = _optimisers(flux, settings.lr)
    start, losses = time.perf_counter(), []
    for step in range(first_step, settings.steps):
        ramp = min(1.0, (step - first_step + 1) / 30)
        cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = settings.lr * ramp * (0.03 + 0.97 * cosine)
        chosen = torch.randint(len(latents), (settings.batch,), generator=generator)
        is_late = step >= settings.late_from
        wrong_share = settings.late_caption_noise if is_late else settings.caption_noise
        wrong = mislabel(indices[chosen], wrong_share, generator)
        kept = torch.rand(settings.batch, 1, generator=generator) >= settings.empty_captions
        features, pooled = flux.text(words[_codes(wrong)] * kept)
        x_0, t = latents[chosen], _times(settings.batch, generator)
        noise = torch.randn(x_0.shape, generator=generator)
        mix = t[:, None, None, None]
        x_t = (1 - mix) * x_0 + mix * noise
        velocity = predict_velocity(flux.transformer, x_t, t, features, pooled)
        loss = (velocity - (noise - x_0)).square().mean()
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(live, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        with torch.no_grad():
            rate = min(settings.ema, (step + 1) / (step + 10))
            for averaged, parameter in zip(slow, live, strict=True):
                averaged.lerp_(parameter, 1 - rate)
        losses.append(loss.item())
        done = step + 1
        if done % 50 == 0:
            mean = sum(losses[-50:]) / len(losses[-50:])
            _LOG.info("step %d loss %.4f, %.0f s", done, mean, time.perf_counter() - start)
        if done % settings.report_every == 0 or done == settings.steps:
            report(average, done)
    for module in average.parts().values():
        module.train(False).requires_grad_(False)
    return average
