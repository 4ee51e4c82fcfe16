"""What the ratios of an update looked like, chunk by chunk.

Legend: G samples in a group, K chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .objective import (
    GroupFacts,
    ObjectiveConfig,
    StepTerms,
    chunk_means,
    is_held_back,
    log_ratios,
    plain_log_ratios,
)

__all__ = ["ChunkStatistics", "chunk_statistics", "k3"]


@dataclass(frozen=True)
class ChunkStatistics:
    """Sums over samples, so that groups can be added up. Shapes (K,)."""

    count: Tensor
    """Samples that drew each chunk."""
    ratio: Tensor
    """Sum of r_j (of its mean over the steps, for step ratios)."""
    deviation: Tensor
    """Largest |r - 1|."""
    clipped: Tensor
    """Samples (or their share of steps, for step ratios) whose gradient the trust region cut."""
    kl: Tensor
    """Sum of :func:`k3` of the ratios."""
    gap: Tensor
    """Sum of mean |v - v_ref|^2; 0 when no reference was measured."""

    def columns(self, *, has_reference: bool) -> dict[str, object]:
        """Means for a row of metrics, JSON-ready; of each chunk None where no sample drew it.

        Args:
            has_reference: The distance to the reference policy was measured.
        """
        count, trained = self.count.clamp(min=1), max(int(self.count.sum()), 1)

        def by_chunk(values: Tensor) -> list[float | None]:
            pairs = zip(values, self.count, strict=True)
            return [float(value) if drawn else None for value, drawn in pairs]

        return {
            "ratio_mean": by_chunk(self.ratio / count),
            "ratio_max_deviation": by_chunk(self.deviation),
            "clip_fraction": by_chunk(self.clipped / count),
            "approx_kl": float(self.kl.sum() / trained),
            "reference_gap": float(self.gap.sum() / trained) if has_reference else None,
        }

    def __add__(self, other: ChunkStatistics) -> ChunkStatistics:
        return ChunkStatistics(
            self.count + other.count,
            self.ratio + other.ratio,
            torch.maximum(self.deviation, other.deviation),
            self.clipped + other.clipped,
            self.kl + other.kl,
            self.gap + other.gap,
        )


def chunk_statistics(
    terms: StepTerms, facts: GroupFacts, counted: Tensor, config: ObjectiveConfig
) -> ChunkStatistics:
    """Measure one group's ratios.

    Args:
        terms: As measured.
        facts: The group.
        counted: Bool, shape (G, K): the chunks that were trained.
        config: Kind of ratio and trust region.
    """
    terms = StepTerms(*(term.detach().double() for term in terms))
    log_ratio = log_ratios(terms, facts, config)
    ratio, kl = log_ratio.exp(), k3(-plain_log_ratios(terms, facts, config))
    deviation = (ratio - 1.0).abs()
    clipped = is_held_back(terms, facts, config).double()
    if config.ratio == "step":
        plan = facts.plan
        deviation = torch.stack([deviation[:, a:b].amax(1) for a, b in plan.bounds()], dim=1)
        ratio, clipped, kl = (chunk_means(values, plan) for values in (ratio, clipped, kl))
    gap = chunk_means(terms.gap, facts.plan)
    zero = torch.zeros_like(ratio)
    return ChunkStatistics(
        count=counted.sum(0),
        ratio=torch.where(counted, ratio, zero).sum(0),
        deviation=torch.where(counted, deviation, zero).amax(0),
        clipped=torch.where(counted, clipped, zero).sum(0),
        kl=torch.where(counted, kl, zero).sum(0),
        gap=torch.where(counted, gap, zero).sum(0),
    )


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-d) - 1 + d, 0 or more, where d = log p - log q at samples of p.

    The estimator of Schulman's "Approximating KL Divergence" (2020): unbiased for KL(p || q) if d
    is the log-ratio of whole densities. Of a log-ratio that is a mean over D dimensions and n steps
    it estimates KL^2 / 2 + KL / (n D), KL being per dimension and step: a small number that grows
    with the square of the KL. ``approx_kl`` of the sources' logs is the same, or its leading term.
    """
    return torch.expm1(-log_ratio) + log_ratio
