"""Is the model that is trained the one that sampled? Recorded log-densities, computed again.

The largest ratio error that is allowed is the clip range: beyond it, the first update would clip
samples as if the policy had moved. Where rounding is large it comes on top, for it depends on the
batch shape.

A log-density of a step that nobody replays is compared with what any Gaussian gives at its own
samples, -1/2 - log std - log(2 pi) / 2 with a standard deviation of 1 / sqrt(2 D).

Legend: B samples of a cell, D latent dimensions, G samples in a group, N steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...method.rollout import Trajectory
from .verdict import REMEDY, SelfTestFailed

__all__ = ["LARGEST_CLIP", "RatioErrors", "check_records"]

LARGEST_CLIP = 0.01
"""A clip range that is wider than this, as PPO's own, is taken for this."""
_FLOAT32 = 1e-6
"""Rounding of a log-density in float32."""
_SIGMAS = 8.0


class RatioErrors(NamedTuple):
    """How far ratios are from 1, and how far they may be."""

    largest: float
    spread: float
    """Root mean square."""
    limit: float
    """Of the largest."""
    spread_limit: float

    @classmethod
    def of(cls, errors: Sequence[float], clip: float, rounding: float) -> RatioErrors:
        """Compare with the clip range.

        Args:
            errors: |ratio - 1| of every replay, one or more.
            clip: The smaller half of the clip range.
            rounding: Standard deviation of a log-density by rounding.
        """
        spread = math.sqrt(sum(error**2 for error in errors) / len(errors))
        base = min(clip, LARGEST_CLIP) + _FLOAT32
        return cls(max(errors), spread, base + 5.0 * rounding, base + 2.0 * rounding)

    def check(self) -> None:
        """Raise SelfTestFailed if a ratio is too far from 1."""
        if self.largest <= self.limit and self.spread <= self.spread_limit:
            return
        raise SelfTestFailed(
            "self-test: the model that is trained is not the one that sampled. The probability "
            f"ratio of a recorded step is off by {self.largest:.2g} before any update "
            f"({self.spread:.2g} on average), allowed {self.limit:.2g} ({self.spread_limit:.2g}): "
            "the clip range and what rounding makes. Its caption, step, sample or velocity is "
            f"another one. {REMEDY}"
        )


def check_records(groups: Sequence[Trajectory]) -> None:
    """Compare all recorded log-densities with what a Gaussian gives at its own samples.

    Raises:
        SelfTestFailed: One cannot be the log-density of a sample.
    """
    for trajectory in groups:
        dimensions = trajectory.states[0, 0].numel()
        tolerance = _SIGMAS / math.sqrt(2.0 * dimensions) + _FLOAT32
        expected = _expected(trajectory)
        distance = (trajectory.log_p - expected).abs()
        distance[~trajectory.stochastic] = 0.0
        if bool((distance <= tolerance).all()):
            continue
        step, sample = divmod(int(distance.nan_to_num(torch.inf).argmax()), trajectory.group_size)
        raise SelfTestFailed(
            f"self-test: the log-density recorded for step {step + 1} of sample {sample + 1} is "
            f"{float(trajectory.log_p[step, sample]):.4g}, but that of a sample of this step is "
            f"{float(expected[step, 0]):.4g}, give or take {tolerance:.2g}; it belongs to another "
            f"step or sample. {REMEDY}"
        )


def _expected(trajectory: Trajectory) -> Tensor:
    """Mean log-density of a sample of each step, shape (N - 1, 1)."""
    pairs = trajectory.grid.pairs()[: len(trajectory.log_p)]
    stds = [trajectory.sde.std(*pair) if trajectory.sde.is_stochastic else 1.0 for pair in pairs]
    constant = 0.5 + 0.5 * math.log(2.0 * math.pi)
    return torch.tensor([[-constant - math.log(std)] for std in stds])
