"""One group, scored and compared: all that the chunk objective trains on.

Legend: G samples in a group, K chunks, N steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .chunks import ChunkPlan
from .micro_batches import MicroBatch, step_batches, whole_units
from .objective import GroupFacts, ObjectiveConfig
from .rollout import Trajectory
from .stream import Stream

__all__ = ["GroupTask", "Reference"]


@dataclass(frozen=True)
class Reference:
    """What the reference policy (adapter off) says about a recorded group, on the CPU."""

    v_t: Tensor
    """Velocities, shape (N - 1, G, *latent); only the steps that are trained are filled in."""


@dataclass(frozen=True)
class GroupTask:
    """One group, ready to be trained on."""

    trajectory: Trajectory
    plan: ChunkPlan
    """K chunks covering the N - 1 trainable steps."""
    advantages: Tensor
    """A_i, CPU float32, shape (G,)."""
    drawn: Tensor
    """Bool, shape (G, K): the chunks each sample trains on."""
    reference: Reference | None = None
    """See :func:`~.streaming.with_reference`."""
    weight: float = 1.0
    """Part of its group that these samples are."""

    def trained_chunks(self, config: ObjectiveConfig) -> Tensor:
        """The drawn chunks of samples that have a gradient at all, bool, shape (G, K)."""
        has_gradient = (self.advantages != 0) | config.has_penalty
        return self.drawn & has_gradient[:, None]

    def needed_steps(self, config: ObjectiveConfig) -> Tensor:
        """The sample-steps inside those chunks, bool, shape (G, N - 1)."""
        return self.plan.spread(self.trained_chunks(config))

    def all_batches(self, config: ObjectiveConfig, stream: Stream) -> list[MicroBatch]:
        """Micro-batches of all sample-steps that are needed."""
        whole, rest = self.batches(config, stream)
        return [*whole, *step_batches(rest, stream.batch_size, mixes_times=stream.mixes_times)]

    def batches(self, config: ObjectiveConfig, stream: Stream) -> tuple[list[MicroBatch], Tensor]:
        """Micro-batches of what shares a ratio and fits into one whole, and the sample-steps that
        are left, bool, shape (G, N - 1)."""
        size, mixes_times = stream.batch_size, stream.mixes_times
        if config.ratio == "step":
            steps = [(step, step + 1) for step in range(self.plan.steps)]
            return whole_units(self.needed_steps(config), steps, size, mixes_times=mixes_times)
        trained, bounds = self.trained_chunks(config), self.plan.bounds()
        whole, rest = whole_units(trained, bounds, size, mixes_times=mixes_times)
        return whole, self.plan.spread(rest)

    def facts(self) -> GroupFacts:
        """The part of it that the objective knows."""
        sde, pairs = self.trajectory.sde, self.trajectory.grid.pairs()[:-1]
        return GroupFacts(
            plan=self.plan,
            advantages=self.advantages,
            drawn=self.drawn,
            old_log_p=self.trajectory.log_p.T,
            std=torch.tensor([sde.std(t, s) for t, s in pairs]),
            dt=torch.tensor([s - t for t, s in pairs]),
            v_factor=torch.tensor([sde.coefficients(t, s).b for t, s in pairs]),
            noise_level=torch.tensor([sde.noise_level(t, s) for t, s in pairs]),
        )
