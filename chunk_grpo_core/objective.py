"""Optimise by chunk: the clipped surrogate on chunk ratios.

    r_j  = exp( mean over t in ch_j of (log p_new(x_s | x_t) - log p_old(x_s | x_t)) )   (Eq. 15)
    loss = - mean over samples and their drawn chunks of
             min( r_j A, clip(r_j, 1 - eps_low, 1 + eps_high) A )                        (Eq. 14)

The geometric mean inside a chunk is GSPO's; with one step per chunk r_j is the step ratio of
Flow-GRPO, with one chunk in all it is the sequence ratio. Equation numbers: GCPO v3.

Legend: G samples in a group, K chunks, N steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .chunks import ChunkPlan

__all__ = [
    "ChunkStatistics",
    "ObjectiveConfig",
    "chunk_means",
    "chunk_statistics",
    "clipped_loss",
    "log_ratios",
]


RATIOS = ("chunk", "step")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """The trust region."""

    clip_low: float = 5e-5
    """eps_low: the ratio may fall to 1 - eps_low, in (0, 1). Paper, Table 8."""
    clip_high: float = 5e-5
    """eps_high: the ratio may rise to 1 + eps_high, above 0. Paper, Table 8."""
    ratio: str = "chunk"
    """chunk: one ratio r_j for each chunk (the paper). step: every step keeps a ratio and a clip of
    its own, and a chunk's gain is the mean over its steps. On-policy both have the same gradient,
    so ``step`` isolates what the shared ratio does from what the weighting of steps does."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1:
            raise ValueError(f"objective.clip_low is {self.clip_low}; it must be in (0, 1)")
        if not self.clip_high > 0:
            raise ValueError(f"objective.clip_high is {self.clip_high}; it must be above 0")
        if self.ratio not in RATIOS:
            raise ValueError(
                f"objective.ratio is {self.ratio!r}; it must be one of {', '.join(RATIOS)}"
            )


def chunk_means(values: Tensor, plan: ChunkPlan) -> Tensor:
    """Average numbers of steps, shape (G, N - 1), inside each chunk: (G, K)."""
    return torch.stack([values[:, a:b].mean(1) for a, b in plan.bounds()], dim=1)


def log_ratios(
    log_p: Tensor, old_log_p: Tensor, plan: ChunkPlan, config: ObjectiveConfig
) -> Tensor:
    """Log-ratios that are clipped: log r_j of K chunks, or one of each step.

    Args:
        log_p: New log-densities, float32, shape (G, N - 1). Entries of chunks that are not drawn
            may hold anything finite.
        old_log_p: Log-densities at sampling time, shape (G, N - 1).
        plan: K chunks covering N - 1 steps.
        config: Says which of the two.

    Returns:
        Shape (G, K), or (G, N - 1) for step ratios.
    """
    difference = log_p - old_log_p
    return chunk_means(difference, plan) if config.ratio == "chunk" else difference


def clipped_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    drawn: Tensor,
    plan: ChunkPlan,
    config: ObjectiveConfig,
) -> Tensor:
    """PPO-clip loss of one group, a scalar.

    Args:
        log_ratio: See :func:`log_ratios`.
        advantages: A_i, shape (G,).
        drawn: Bool, shape (G, K): the chunks that are trained, at least one in each row.
        plan: K chunks.
        config: The clip range.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    a = advantages[:, None]
    gain = torch.minimum(ratio * a, clipped * a)
    if config.ratio == "step":
        gain = chunk_means(gain, plan)
    per_sample = torch.where(drawn, gain, 0.0).sum(1) / drawn.sum(1)
    return -per_sample.mean()


@dataclass(frozen=True)
class ChunkStatistics:
    """What one group's update looked like, summed so that groups can be added up. Shapes (K,)."""

    count: Tensor
    """Samples that drew each chunk."""
    ratio: Tensor
    """Sum of r_j."""
    deviation: Tensor
    """Largest |r_j - 1|."""
    clipped: Tensor
    """Samples (or their share of steps, for step ratios) whose gradient the clip removed."""
    kl: Tensor
    """Sum of r - 1 - log r, the k3 estimate of KL(old || new) per step and dimension."""

    def __add__(self, other: ChunkStatistics) -> ChunkStatistics:
        return ChunkStatistics(
            self.count + other.count,
            self.ratio + other.ratio,
            torch.maximum(self.deviation, other.deviation),
            self.clipped + other.clipped,
            self.kl + other.kl,
        )


def chunk_statistics(
    log_ratio: Tensor,
    advantages: Tensor,
    drawn: Tensor,
    plan: ChunkPlan,
    config: ObjectiveConfig,
) -> ChunkStatistics:
    """Measure ratios and clipping of one group; arguments as in :func:`clipped_loss`.

    Step ratios are averaged (their deviations: the largest taken) inside each chunk.
    """
    log_ratio = log_ratio.detach().double()
    ratio = log_ratio.exp()
    a = advantages[:, None]
    removed = ((a > 0) & (ratio > 1.0 + config.clip_high)) | (
        (a < 0) & (ratio < 1.0 - config.clip_low)
    )
    deviation, kl = (ratio - 1.0).abs(), (ratio - 1.0) - log_ratio
    removed = removed.double()
    if config.ratio == "step":
        deviation = torch.stack([deviation[:, i:j].amax(1) for i, j in plan.bounds()], dim=1)
        ratio, removed, kl = (chunk_means(values, plan) for values in (ratio, removed, kl))
    zero = torch.zeros_like(ratio)
    return ChunkStatistics(
        count=drawn.sum(0),
        ratio=torch.where(drawn, ratio, zero).sum(0),
        deviation=torch.where(drawn, deviation, zero).amax(0),
        clipped=torch.where(drawn, removed, zero).sum(0),
        kl=torch.where(drawn, kl, zero).sum(0),
    )
