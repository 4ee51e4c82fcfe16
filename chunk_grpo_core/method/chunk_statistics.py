"""What the ratios of an update looked like, chunk by chunk.

Legend: D latent dimensions, G samples in a group, K chunks, N steps.
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

__all__ = ["ChunkStatistics", "chunk_statistics"]


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
    """Sum of KL(old || new) per latent dimension and step."""
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
    terms: StepTerms, facts: GroupFacts, counted: Tensor, config: ObjectiveConfig, dimensions: int
) -> ChunkStatistics:
    """Measure one group's ratios.

    Args:
        terms: As measured.
        facts: The group.
        counted: Bool, shape (G, K): the chunks that were trained.
        config: Kind of ratio and trust region.
        dimensions: D, which log-densities are means over.
    """
    terms = StepTerms(*(term.detach().double() for term in terms))
    log_ratio = log_ratios(terms, facts, config)
    ratio = log_ratio.exp()
    deviation = (ratio - 1.0).abs()
    clipped = is_held_back(terms, facts, config).double()
    if config.ratio == "step":
        plan = facts.plan
        deviation = torch.stack([deviation[:, a:b].amax(1) for a, b in plan.bounds()], dim=1)
        ratio, clipped = (chunk_means(values, plan) for values in (ratio, clipped))
    gap = chunk_means(terms.gap, facts.plan)
    zero = torch.zeros_like(ratio)
    return ChunkStatistics(
        count=counted.sum(0),
        ratio=torch.where(counted, ratio, zero).sum(0),
        deviation=torch.where(counted, deviation, zero).amax(0),
        clipped=torch.where(counted, clipped, zero).sum(0),
        kl=_kl(terms, facts, counted, config, dimensions),
        gap=torch.where(counted, gap, zero).sum(0),
    )


def _kl(
    terms: StepTerms, facts: GroupFacts, counted: Tensor, config: ObjectiveConfig, dimensions: int
) -> Tensor:
    """Sum over samples of the KL per dimension and step, shape (K,): exact where the objective
    compares means, else from the squares of the log-ratios.

    A log-ratio that is a mean over M = n D numbers (n steps) is N(-KL, 2 KL / M), so that its mean
    square is 2 KL / M + KL^2, and KL = (sqrt(1 + M^2 square) - 1) / M, which is also the estimate
    of maximum likelihood (``docs/units.md``).
    """
    plan = facts.plan
    if config.needs_old_mean:
        return torch.where(counted, chunk_means(terms.kl_old, plan), 0.0).sum(0)
    is_chunk = config.ratio == "chunk"
    of_ratio = counted if is_chunk else plan.spread(counted)
    square = torch.where(of_ratio, plain_log_ratios(terms, facts, config).square(), 0.0).sum(0)
    square = square / of_ratio.sum(0).clamp(min=1)
    size = dimensions * (torch.tensor(plan.sizes) if is_chunk else torch.ones_like(square))
    kl = size * square / (1.0 + (1.0 + (size * size) * square).sqrt())
    return counted.sum(0) * (kl if is_chunk else chunk_means(kl[None], plan)[0])
