"""Samplers that others wrote: from initial noise to finished pictures, and nothing else is known.

An algorithm that needs only the finished latents of a rollout, as ``forward`` does, can be handed
one of them, and trains a model as its pictures are made. Where none is handed, the library's own
walk samples (``method/walk.py``).

Legend: B samples, ``*latent`` the model's latent shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..prompts.example import Example
from .schedule import TimeGrid
from .stream import Stream

__all__ = ["OWN_WALK", "Sampler", "name_of_sampler"]

OWN_WALK = "chunk-grpo"
"""What records call the library's own walk."""


class Sampler(Protocol):
    """Makes pictures by a way of its own; two of equal names make the same pictures."""

    @property
    def name(self) -> str:
        """For records, with every option that pictures depend on: ``dpmpp_2m``. A run is resumed
        with a sampler of this name only."""
        ...

    @property
    def draws_noise(self) -> bool:
        """Whether samples that start alike may end in different pictures."""
        ...

    def sample(
        self, stream: Stream, example: Example, grid: TimeGrid, x_1: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """Sample without gradients. A picture depends on its row of ``x_1`` and on its seed, not on
        what else is sampled.

        Args:
            stream: The model, in one of its phases.
            example: What all samples show.
            grid: Noise levels.
            x_1: Initial noise, CPU float32, shape (B, *latent).
            seeds: B seeds, 0..2^63 - 1, for noise that is drawn on the way.

        Returns:
            x_0, finite, CPU float32, shape (B, *latent).
        """
        ...


def name_of_sampler(sampler: Sampler | None) -> str:
    """Name for records; None is the library's own walk."""
    return OWN_WALK if sampler is None else sampler.name
