"""Advantages: how much better a sample is than the others of its group.

    A_i = (r_i - mean(r)) / std(r)   inside the group, clamped                 (Eq. 4, GCPO v3)

Legend: P groups (prompts), G samples in a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AdvantageConfig", "Advantages", "group_advantages"]

_MIN_STD = 1e-6
"""Below this spread of rewards (in reward units) a group carries no signal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageConfig:
    """How rewards become advantages."""

    clamp: float = 5.0
    """Largest absolute advantage, above 0."""

    def __post_init__(self) -> None:
        if not self.clamp > 0:
            raise ValueError(f"advantage.clamp is {self.clamp}; it must be above 0")


@dataclass(frozen=True)
class Advantages:
    """Advantages of P groups."""

    values: Tensor
    """Float32, shape (P, G); 0 for masked samples and for groups without signal."""
    zero_variance_groups: int
    """Groups whose valid rewards are all equal, or that have fewer than two; they train nothing."""
    masked: int
    """Samples without a valid reward."""


def group_advantages(
    rewards: Tensor, valid: Tensor, config: AdvantageConfig | None = None
) -> Advantages:
    """Normalise rewards inside each group.

    Args:
        rewards: Float32, shape (P, G).
        valid: Bool, shape (P, G); other samples are left out of mean and std and get 0.
        config: The clamp.

    Raises:
        ValueError: Shapes differ, or a group has fewer than two samples.
    """
    if rewards.shape != valid.shape or rewards.ndim != 2:
        raise ValueError(
            f"rewards and valid must both have shape (P, G), got {tuple(rewards.shape)} "
            f"and {tuple(valid.shape)}"
        )
    if rewards.shape[1] < 2:
        raise ValueError(
            "group_size is 1; an advantage compares samples of one prompt, so it must be 2 or more"
        )
    clamp = (config or AdvantageConfig()).clamp
    count = valid.sum(1, keepdim=True)
    known = torch.where(valid, rewards, torch.zeros_like(rewards)).double()
    mean = known.sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(valid, known - mean, torch.zeros_like(known))
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    has_signal = (count >= 2) & (std > _MIN_STD)
    values = torch.where(has_signal, centred / std.clamp(min=_MIN_STD), torch.zeros_like(centred))
    return Advantages(
        values=values.clamp(-clamp, clamp).float(),
        zero_variance_groups=int((~has_signal).sum()),
        masked=int((~valid).sum()),
    )
