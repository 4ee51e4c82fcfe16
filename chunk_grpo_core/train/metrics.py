"""One iteration's row of numbers: what every algorithm has, and the columns of the one that trains.

Legend: P groups (prompts), G samples in a group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..method.advantage import Advantages
from ..method.reward import RewardBatch, RewardPart
from ..processes.collective import Share

__all__ = ["UpdateReport", "metrics_row", "picture_spread", "some_pixels"]

_SIDE = 16
"""Pixels in a row of those that are compared."""


@dataclass(frozen=True)
class UpdateReport:
    """What the optimiser steps of one iteration did."""

    grad_norms: Sequence[float]
    """L2 norm of the gradient before clipping, one for each update."""
    columns: Mapping[str, object]
    """The algorithm's own, JSON-ready."""
    velocity_norm: float | None = None
    """|v| / |v_ref| after the last step (``velocity_norm.py``)."""

    def with_norm(self, velocity_norm: float | None) -> UpdateReport:
        """The same, with the norm."""
        return replace(self, velocity_norm=velocity_norm)


def metrics_row(
    iteration: int,
    reward_name: str,
    rewards: Sequence[RewardBatch],
    advantages: Advantages,
    update: UpdateReport,
    seconds: Mapping[str, float],
    peak_memory_gib: float | None,
    *,
    batch_size: int | None = None,
    picture_spread: float | None = None,
) -> dict[str, object]:
    """Build the JSON-ready row that goes to metrics.jsonl.

    Args:
        iteration: 0-based.
        reward_name: Stands in the row for batches without parts.
        rewards: P batches of G scores.
        advantages: Of the same groups.
        update: What the optimiser did.
        seconds: Time of each phase.
        peak_memory_gib: Peak accelerator memory, None on the CPU.
        batch_size: Samples in one call of the model, as the iteration ended; None for no limit.
        picture_spread: How much pictures of a group differ, 0..1; see :func:`picture_spread`.
    """
    return {
        "iteration": iteration,
        "reward_mean": _mean([batch.values[batch.valid] for batch in rewards]),
        "reward_std": _mean([_std(batch.values[batch.valid]) for batch in rewards]),
        "rewards": _per_reward(reward_name, rewards),
        "extras": {
            name: _mean([b.extras[name][b.valid] for b in rewards if name in b.extras])
            for name in sorted({name for batch in rewards for name in batch.extras})
        },
        "picture_spread": picture_spread,
        "advantage_std": float(_std(advantages.values[advantages.trained])),
        "zero_variance_groups": advantages.zero_variance_groups,
        "masked_scores": advantages.masked,
        **update.columns,
        "velocity_norm": update.velocity_norm,
        "grad_norm": sum(update.grad_norms) / len(update.grad_norms),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_gib": peak_memory_gib,
        "batch_size": batch_size,
    }


def some_pixels(images: Tensor) -> Tensor:
    """A few pixels of pictures (G, H, W, 3), always the same ones; shape (G, n)."""
    rows, columns = (torch.linspace(0, size - 1, _SIDE).long() for size in images.shape[1:3])
    return images[:, rows][:, :, columns].flatten(1)


def picture_spread(parts: Sequence[tuple[Share, Tensor]]) -> float | None:
    """How much the pictures of a group differ: standard deviation over the group, 0..1.

    Args:
        parts: Groups, or parts of them, with :func:`some_pixels` of their pictures.

    Returns:
        The mean over pixels and groups; None if a picture is not finite.
    """
    groups: dict[int, list[Tensor]] = {}
    for share, pixels in parts:
        groups.setdefault(share.group, []).append(pixels)
    spreads = [torch.cat(group).std(0).mean() for group in groups.values()]
    spread = float(torch.stack(spreads).mean())
    return spread if math.isfinite(spread) else None


def _per_reward(name: str, batches: Sequence[RewardBatch]) -> dict[str, dict[str, object]]:
    """Mean, standard deviation inside groups and masked scores of every reward, before weights."""
    scores_of: dict[str, list[RewardPart | RewardBatch]] = {}
    for batch in batches:
        for part in batch.parts:
            scores_of.setdefault(part.name, []).append(part)
        if not batch.parts:
            scores_of.setdefault(name, []).append(batch)
    return {
        key: {
            "mean": _mean([part.values[part.valid] for part in scores]),
            "std": _mean([_std(part.values[part.valid]) for part in scores]),
            "masked": sum(int((~part.valid).sum()) for part in scores),
        }
        for key, scores in scores_of.items()
    }


def _mean(tensors: Sequence[Tensor]) -> float | None:
    joined = torch.cat([part.flatten() for part in tensors])
    return float(joined.mean()) if len(joined) else None


def _std(values: Tensor) -> Tensor:
    return values.std() if len(values) > 1 else torch.zeros(1)
