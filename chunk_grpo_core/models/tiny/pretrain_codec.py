"""First stage of pre-training: the latent codec.

Legend: B pictures in a batch.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .codec import TinyCodec
from .render import palette, render_indices
from .world import SCENES, TRAIN, indices_of

__all__ = ["CodecSettings", "codec_error", "train_codec"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodecSettings:
    """Settings of :func:`train_codec`. Fractions and noise in 0..1, sizes > 0."""

    steps: int = 4500
    batch: int = 32
    lr: float = 3e-3
    ema: float = 0.99
    latent_noise: float = 0.2
    """Largest noise on the latents, in standard deviations; the level is drawn per picture."""
    random_colours: float = 0.2
    """Share of pictures with colours off the palette, so that odd colours decode honestly."""


def _batch(settings: CodecSettings, table: Tensor, generator: torch.Generator) -> Tensor:
    """Random pictures, (B, 3, 64, 64) in -1..1."""
    size = settings.batch
    indices = table[torch.randint(len(table), (size,), generator=generator)]
    colours = palette()[indices[:, [2, 4]]]
    free = torch.rand(size, 1, 1, generator=generator) < settings.random_colours
    other = torch.rand(size, 2, 3, generator=generator)
    images = render_indices(indices, generator, torch.where(free, other, colours))
    return images.movedim(-1, 1) * 2 - 1


def _loss(codec: TinyCodec, pixels: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Pixel error after a round trip with noisy latents; noise is relative to their spread."""
    raw = codec.encoder(pixels)
    spread = raw.detach().std(dim=(0, 2, 3), keepdim=True)
    level = noise * torch.rand(len(raw), 1, 1, 1, generator=generator)
    noisy = raw + level * spread * torch.randn(raw.shape, generator=generator)
    out = codec.decoder(noisy)
    return functional.l1_loss(out, pixels) + 2 * functional.mse_loss(out, pixels)


@torch.no_grad()
def _normalise(codec: TinyCodec, table: Tensor, generator: torch.Generator) -> None:
    """Set the codec's constants from pictures of the training split."""
    rows = table.repeat(2, 1)
    raw = codec.encoder(render_indices(rows, generator).movedim(-1, 1) * 2 - 1)
    codec.mean.copy_(raw.mean(dim=(0, 2, 3)))
    codec.std.copy_(raw.std(dim=(0, 2, 3)))


@torch.no_grad()
def codec_error(codec: TinyCodec, seed: int = 1) -> dict[str, float]:
    """Round-trip error in 0..1 pixel units over all 480 scenes: mean, rms and largest."""
    images = render_indices(indices_of(SCENES), torch.Generator().manual_seed(seed))
    error = (codec.decode(codec.encode(images)) - images).abs()
    return {
        "mean": float(error.mean()),
        "rms": float(error.square().mean().sqrt()),
        "p999": float(error.flatten().kthvalue(int(0.999 * error.numel())).values),
    }


def train_codec(settings: CodecSettings, seed: int) -> TinyCodec:
    """Train the codec (AdamW, cosine schedule, EMA). The same seed gives the same weights."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    table = indices_of(TRAIN)
    codec, average = TinyCodec(), TinyCodec()
    average.load_state_dict(codec.state_dict())
    live, slow = list(codec.parameters()), list(average.parameters())
    optimiser = torch.optim.AdamW(live, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0)
    start, losses = time.perf_counter(), []
    for step in range(settings.steps):
        ramp = min(1.0, (step + 1) / 50)
        cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        optimiser.param_groups[0]["lr"] = settings.lr * ramp * (0.02 + 0.98 * cosine)
        pixels = _batch(settings, table, generator)
        loss = _loss(codec, pixels, settings.latent_noise, generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        optimiser.step()
        with torch.no_grad():
            rate = min(settings.ema, (step + 1) / (step + 10))
            for averaged, parameter in zip(slow, live, strict=True):
                averaged.lerp_(parameter, 1 - rate)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            mean = sum(losses[-100:]) / 100
            seconds = time.perf_counter() - start
            _LOG.info("codec step %d loss %.4f, %.0f s", step + 1, mean, seconds)
    _normalise(average, table, generator)
    _LOG.info("codec error %s", codec_error(average))
    return average.train(False).requires_grad_(False)
