"""Where the self-test looks: a few recorded steps of different groups, times and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...method.rollout import Trajectory

__all__ = ["BATCH", "STANDARD", "THOROUGH", "Cell", "Effort", "cells_of"]

BATCH = 2
"""Samples of a cell."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much the self-test measures."""

    cells: int
    """Recorded steps that are replayed, each with a backward pass of its own."""
    groups: int
    """Parts of the adapter that are moved one after the other where rounding is large; each costs
    two calls of the model. Where it is small, a cell moves the whole adapter at once."""
    fine_groups: int
    """The same where rounding is small."""
    is_thorough: bool = False
    """Test every cell in every way, and compare the ratio at every step, not only in the cells."""


STANDARD = Effort(cells=2, groups=6, fine_groups=2)
"""Before every training: at most 5 % of a first iteration of the default size in float32."""
THOROUGH = Effort(cells=6, groups=6, fine_groups=96, is_thorough=True)
"""Where rounding is small, every layer on its own, up to 96 groups of them; else all groups in
every cell."""


@dataclass(frozen=True)
class Cell:
    """One recorded step of some samples."""

    trajectory: Trajectory
    step: int
    """0-based, one that took noise for all of the samples."""
    samples: Tensor
    """Numbers of the samples in the group, shape (B,)."""

    @property
    def pair(self) -> tuple[float, float]:
        """(t, s)."""
        return self.trajectory.grid.pairs()[self.step]

    @property
    def std(self) -> float:
        """Of the step."""
        return self.trajectory.sde.std(*self.pair)

    @property
    def velocity_in_std(self) -> float:
        """How much the mean moves, in units of std, if the velocity moves by 1."""
        coefficients = self.trajectory.sde.coefficients(*self.pair)
        return abs(coefficients.b) / coefficients.std


def cells_of(groups: Sequence[Trajectory], count: int, batch: int, turn: int = 0) -> list[Cell]:
    """Spread cells over groups, steps and samples; the first is in the middle of the steps.

    Args:
        groups: Sampled groups, each with at least one step that took noise.
        count: How many cells, 1 or more.
        batch: Samples of a cell, at most.
        turn: Another one gives other steps, samples and, where there are enough, groups.
    """
    order = sorted(range(count), key=lambda number: (abs(2 * number + 1 - count), -number))
    cells = []
    for number, position in enumerate(order):
        place = number + turn * count
        trajectory = groups[place % len(groups)]
        counts = trajectory.stochastic.sum(1)
        steps = (counts >= min(batch, int(counts.max()))).nonzero().flatten()
        middle = (2 * position + 1 + turn) * len(steps) // (2 * count)
        step = int(steps[middle % len(steps)])
        noisy = trajectory.stochastic[step].nonzero().flatten()
        first = place * batch % len(noisy)
        cells.append(Cell(trajectory, step, torch.roll(noisy, -first)[:batch].sort().values))
    return cells
