"""Classifier-free guidance: one velocity of what the prompt and the negative prompt give.

Pipelines differ in the formula: the same number means more in those that start from the prompt.

References:
    Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), arXiv 2207.12598v1, Eq. (6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Guidance"]


@dataclass(frozen=True)
class Guidance:
    """The formula of a pipeline."""

    from_prompt: bool = False
    """Start from the prompt's velocity c: c + g (c - u), on for g > 0. Otherwise start from the
    negative prompt's u: u + g (c - u), on for g > 1."""
    rescaled: bool = False
    """Give each token the length that it has in c."""

    def is_on(self, scale: float) -> bool:
        """Whether g changes anything."""
        return scale > (0.0 if self.from_prompt else 1.0)

    def combine(self, prompt: Tensor, negative: Tensor, scale: float) -> Tensor:
        """The guided velocity.

        Args:
            prompt: c, velocity with the prompt, (B, *latent).
            negative: u, velocity with the negative prompt.
            scale: g.
        """
        start = prompt if self.from_prompt else negative
        guided = start + scale * (prompt - negative)
        if not self.rescaled:
            return guided
        lengths = [torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (prompt, guided)]
        return guided * (lengths[0] / lengths[1])
