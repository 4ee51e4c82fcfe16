"""Measure a model on the held-out captions, from noise that is the same for all runs.

Legend: P = 96 captions, S = 2 pictures of each, B = P S.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from chunk_grpo_core.method.reward import Reward
from chunk_grpo_core.models.flux.policy import predict_velocity
from chunk_grpo_core.models.tiny.model import LATENT_SHAPE, TinyFlux, load_tiny_flux, sample_latents
from chunk_grpo_core.models.tiny.render import render
from chunk_grpo_core.models.tiny.world import HELD_OUT, TRAIN, caption, parse

from ..tiny import checkerboard, patch_grid, saturation

__all__ = ["CHOOSING", "EVALUATION_STEPS", "TESTING", "TRAINING", "Judge"]

EVALUATION_STEPS = 9
TESTING = [caption(scene) for scene in HELD_OUT]
TRAINING = [caption(scene) for scene in TRAIN]
CHOOSING = TRAINING[288:]
"""Captions that judge a screening, which trains on the others."""
_SEEDS, _NOISE_SEED, _BATCH = 2, 20_000, 64
_PROBE_TIMES, _PROBE_SEED = (1.0, 0.9, 0.7, 0.4), 30_000
_PROBE_CAPTIONS = 48


@dataclass(frozen=True)
class Judge:
    """Held-out captions, and what the base model draws of them."""

    reward: Reward
    captions: list[str] = field(default_factory=lambda: TESTING)

    @cached_property
    def texts(self) -> list[str]:
        """The caption of each picture, B."""
        return [text for text in self.captions for _ in range(_SEEDS)]

    @cached_property
    def _noise(self) -> Tensor:
        seeds = range(_NOISE_SEED, _NOISE_SEED + len(self.captions))
        return torch.cat([_normal(seed, _SEEDS) for seed in seeds])

    @cached_property
    def base(self) -> TinyFlux:
        """The model that nothing was trained on."""
        return load_tiny_flux()

    @cached_property
    def base_pictures(self) -> Tensor:
        """What it draws, (B, H, W, 3)."""
        return self.pictures(self.base)

    @cached_property
    def _probe(self) -> list[tuple[Tensor, float, Tensor]]:
        """States on the way to the base model's pictures: (x_t, t, norms of its velocity)."""
        texts = self.captions[:_PROBE_CAPTIONS]
        eps, fresh = (_normal(_PROBE_SEED + i, len(texts)) for i in range(2))
        x_0 = sample_latents(self.base, eps, texts, EVALUATION_STEPS)
        states = [((1 - t) * x_0 + t * fresh, t) for t in _PROBE_TIMES]
        return [(x_t, t, self._norms(self.base, x_t, t)) for x_t, t in states]

    @torch.no_grad()
    def _norms(self, flux: TinyFlux, x_t: Tensor, t: float) -> Tensor:
        features, pooled = flux.text.encode(self.captions[: len(x_t)])
        times = torch.full((len(x_t),), t)
        return (
            predict_velocity(flux.transformer, x_t, times, features, pooled).flatten(1).norm(dim=1)
        )

    def velocity_ratio(self, flux: TinyFlux) -> float:
        """Mean of |v| / |v of the base model| at the same states and times."""
        ratios = [self._norms(flux, x_t, t) / norms for x_t, t, norms in self._probe]
        return float(torch.cat(ratios).mean())

    @torch.no_grad()
    def pictures(self, flux: TinyFlux, steps: int = EVALUATION_STEPS) -> Tensor:
        """Draw every caption from its noise with Euler's steps along the ODE, (B, H, W, 3)."""
        parts = [slice(i, i + _BATCH) for i in range(0, len(self.texts), _BATCH)]
        latents = [
            sample_latents(flux, self._noise[part], self.texts[part], steps) for part in parts
        ]
        return flux.codec.decode(torch.cat(latents)).clamp(0, 1)

    def measure(self, flux: TinyFlux, images: Tensor | None = None) -> dict[str, float]:
        """All cheap measures of a model; ``images`` if its pictures are drawn already."""
        images = self.pictures(flux) if images is None else images
        return {**self.look(images), "velocity_ratio": round(self.velocity_ratio(flux), 4)}

    def true_pictures(self, seed: int) -> Tensor:
        """What the tiny world's renderer draws of the captions, (B, H, W, 3)."""
        return render([parse(text) for text in self.texts], seed)

    def look(self, images: Tensor) -> dict[str, float]:
        """All cheap measures of pictures of the captions, from whatever they are."""
        score = self.reward.score(images, self.texts)
        pairs = images.view(-1, _SEEDS, *images.shape[1:])
        numbers = {
            "reward": score.values,
            **score.extras,
            "grid": patch_grid(images),
            "checkerboard": checkerboard(images),
            "saturation": saturation(images),
            "diversity": (pairs[:, 0] - pairs[:, 1]).square().flatten(1).mean(1).sqrt(),
        }
        return {name: round(float(values.mean()), 5) for name, values in numbers.items()}


def _normal(seed: int, count: int) -> Tensor:
    return torch.randn(count, *LATENT_SHAPE, generator=torch.Generator().manual_seed(seed))
