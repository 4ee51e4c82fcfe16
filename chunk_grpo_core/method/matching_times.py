"""Noise levels at which finished pictures are trained, their noise, and how much each counts.

A finished picture x_0 is noised to x_t = (1 - t) x_0 + t eps; the velocity that leads back to it is
eps - x_0, and L = |v - (eps - x_0)|^2 (mean over latent dimensions) is its matching error.

Legend: G samples in a group, K times of a sample, B sample-times in a micro-batch, ``*latent`` the
model's latent shape.

References:
    Scaling Rectified Flow Transformers (Esser et al., 2024), arXiv 2403.03206: logit-normal times.
    DiffusionNFT (Zheng et al., 2025), arXiv 2509.16117: the weight ``adaptive``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..settings.declared import OneOf, Range
from .noise import derive_seed

__all__ = [
    "TIMES",
    "WEIGHTS",
    "MatchingTimes",
    "NoisedTimes",
    "draw_times",
    "matching_error",
    "mean_square",
    "time_weights",
]

TIMES = ("grid", "uniform", "logit-normal")
WEIGHTS = ("equal", "x0", "adaptive")

_LEAST_TIME = 1e-3
"""Below it a picture carries no noise that a model was trained on."""
_LEAST_ERROR = 1e-5
"""Of the weight ``adaptive``, as in DiffusionNFT's code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchingTimes:
    """The settings that all training on noised pictures has."""

    times: Annotated[int, Range(1, 64)] = 2
    """K: at how many noise levels each picture is trained."""
    time_distribution: Annotated[str, OneOf(TIMES)] = "grid"
    """grid: K different levels of the run's own grid, so that the model is trained where it is
    used. uniform: K even parts of (0, 1], one drawn in each. logit-normal: the sigmoid of a
    standard normal number, which prefers the middle."""
    weight: Annotated[str, OneOf(WEIGHTS)] = "equal"
    """w(t). equal: 1, the error of the velocity. x0: t^2, that of the picture it points to.
    adaptive: t over the size of that error, DiffusionNFT's."""

    def owners(self, samples: Sequence[int]) -> Sequence[int]:
        """The sample whose levels and noise each of some samples has: its own."""
        return samples


@dataclass(frozen=True)
class NoisedTimes:
    """At which levels, and with which noise, the pictures of a group are trained."""

    t: Tensor
    """Levels in (0, 1], CPU float32, shape (K, G)."""
    eps: Tensor
    """N(0, 1), CPU float32, shape (K, G, *latent)."""

    def noised(self, x_0: Tensor, times: Tensor, samples: Tensor) -> Tensor:
        """x_t of some sample-times, shape (B, *latent).

        Args:
            x_0: All finished latents of the group, CPU, shape (G, *latent).
            times: 0-based numbers of times, shape (B,).
            samples: The sample of each, shape (B,).
        """
        t = self.t[times, samples].view(-1, *[1] * (x_0.ndim - 1))
        return (1.0 - t) * x_0[samples] + t * self.eps[times, samples]

    def target(self, x_0: Tensor, times: Tensor, samples: Tensor) -> Tensor:
        """The velocity that leads back to each picture, eps - x_0; shapes as in :meth:`noised`."""
        return self.eps[times, samples] - x_0[samples]


def draw_times(
    config: MatchingTimes,
    levels: Sequence[float],
    latent_shape: Sequence[int],
    samples: Sequence[int],
    seed: int,
) -> NoisedTimes:
    """Draw levels and noise; those of a sample depend on its number and the seed alone.

    Args:
        config: K, the distribution, and who shares with whom.
        levels: Levels of the rollout's grid above 0, for ``grid``; at least K.
        latent_shape: Shape of one latent.
        samples: Numbers of the samples in their whole group.
        seed: Of the group.
    """
    columns = []
    for number in config.owners(samples):
        generator = torch.Generator().manual_seed(derive_seed(seed, "sample", number))
        t = _levels(config, levels, generator)
        columns.append((t, torch.randn(config.times, *latent_shape, generator=generator)))
    t, eps = (torch.stack(parts, dim=1) for parts in zip(*columns, strict=True))
    return NoisedTimes(t, eps)


def _levels(config: MatchingTimes, levels: Sequence[float], generator: torch.Generator) -> Tensor:
    """The K levels of one sample, falling."""
    count = config.times
    if config.time_distribution == "grid":
        chosen = torch.randperm(len(levels), generator=generator)[:count].sort().values
        return torch.tensor(levels)[chosen]
    if config.time_distribution == "uniform":
        strata = torch.arange(count, 0, -1) - torch.rand(count, generator=generator)
        return (strata / count).clamp(_LEAST_TIME, 1.0)
    normal = torch.randn(count, generator=generator)
    return normal.sigmoid().clamp(_LEAST_TIME, 1.0).sort(descending=True).values


def matching_error(v_t: Tensor, target: Tensor) -> Tensor:
    """L of each row, shape (B,)."""
    return mean_square(v_t - target)


def mean_square(values: Tensor) -> Tensor:
    """Mean over latent dimensions, shape (B,)."""
    return values.square().flatten(1).mean(1)


def time_weights(config: MatchingTimes, t: Tensor, error: Tensor) -> Tensor:
    """w(t) of each sample-time, shape (B,), without gradients.

    Args:
        config: Which weight.
        t: Levels, shape (B,).
        error: L there, for ``adaptive``: the error of the picture is t sqrt(L).
    """
    if config.weight == "equal":
        return torch.ones_like(t)
    if config.weight == "x0":
        return t.square()
    return t.square() / (t * error.detach().sqrt()).clamp_min(_LEAST_ERROR)
