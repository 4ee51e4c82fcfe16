"""Chunk-GRPO: sample by step, optimise by chunk (arXiv 2510.21583; GCPO since v2).

1. Draw the chunks that each sample will train on, before the rollout, so that noise can be left out
   where nothing is trained.
2. Roll out with a stochastic rule; keep states and log-densities.
3. Recompute the old policy in the batch shapes of the updates, where these can change last bits,
   and measure the reference, if the objective asks for it.
4. Stream the gradient of the clipped objective; the first update is on-policy, its ratio 1.

Where the training departs from the official code (github.com/xingzhejun/GCPO, June 2026):

1. A LoRA is trained, not the whole model.
2. The model sees sigma itself, not int(1000 sigma) / 1000.
3. Steps stream through gradient accumulation (``method/streaming.py``); the official loop sends a
   chunk as one batch. The gradient is the same, peak memory is that of one step.
4. Initial noise is shared inside a group (option), not across all prompts of an iteration.
5. Scores that are missing or not finite are masked and counted.
6. Picture x_0 comes from the deterministic last step, and the reward sees the same picture.
7. Where batch shapes can change last bits (accelerators), old log-probs are measured again in the
   geometry of the update; the official loop compares a batch of one with a batch of a chunk.
8. Chunks are drawn before the rollout, so that noise can be left out where nothing is trained.
9. ``objective.kl_old`` weighs the exact KL to the policy that sampled; the official ``kl_coeff``,
   0 in every script, weighs the k3 of the chunk ratio (``docs/units.md``).

One step per chunk is step-level GRPO. Legend: G samples in a group, K chunks, N steps.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..method.chunk_statistics import ChunkStatistics
from ..method.chunks import draw_chunks, drawn_count
from ..method.group_task import GroupTask
from ..method.noise import derive_seed
from ..method.plan_mismatches import plan_mismatches
from ..method.policy import Policy, base_model
from ..method.rollout import Trajectory, rollout
from ..method.stream import Stream
from ..method.streaming import accumulate_group, recompute_old_policy, with_reference
from ..method.windows import (
    check_noise,
    noisy_steps,
    window_chunks,
    window_positions,
)
from .algorithm import GroupRequest, SampledGroup
from .common_settings import CommonSettings, refuse_part

__all__ = ["ChunkGrpo", "ChunkGrpoSettings", "ChunkMeasurement"]

log = logging.getLogger(__name__)


class ChunkGrpoSettings(CommonSettings, Protocol):
    """The settings that Chunk-GRPO reads."""

    @property
    def group_size(self) -> int: ...


@dataclass(frozen=True)
class ChunkMeasurement:
    """What the gradients of some groups have shown."""

    statistics: ChunkStatistics
    passes: int
    """Sample-steps that went through backward."""
    first_error: float
    """Largest |r_j - 1| of first, on-policy updates; 0 on the CPU."""

    def __add__(self, other: ChunkMeasurement) -> ChunkMeasurement:
        return ChunkMeasurement(
            self.statistics + other.statistics,
            self.passes + other.passes,
            max(self.first_error, other.first_error),
        )


class ChunkGrpo:
    """See :class:`~.algorithm.Algorithm`."""

    def __init__(self, config: ChunkGrpoSettings) -> None:
        """Check the settings.

        Raises:
            ValueError: There is no plan, it does not fit the grid, a window does not fit the plan,
                too few chunks could be drawn, or nothing takes noise.
        """
        if config.plan is None:
            raise ValueError(
                "plan is missing, and the algorithm chunk_grpo trains chunks of steps; set "
                'plan.chunks to "step", to sizes such as "2, 3, 4, 7", ...'
            )
        config.plan.check_covers(config.grid.trainable_steps)
        if not config.sde.is_stochastic:
            raise ValueError(
                f"sde is {config.sde.rule} with eta {config.sde.eta}: training needs a stochastic "
                "rule with eta above 0, or there is nothing to explore"
            )
        if not 0.0 < config.chunk_fraction <= 1.0:
            raise ValueError(f"chunk_fraction is {config.chunk_fraction}; it must be in (0, 1]")
        for window in window_positions(config.window, config.plan):
            drawn_count(config.plan, config.chunk_fraction, window)
        check_noise(config.noise, config.ode_solver, config.window)
        for part in ("forward", "preference"):
            refuse_part(config, part, "chunk_grpo")
        self._config, self._plan = config, config.plan

    @property
    def old_decay(self) -> None:
        """See :class:`~.algorithm.Algorithm`: the newest weights sample."""
        return None

    @property
    def sampler(self) -> None:
        """See :class:`~.algorithm.Algorithm`: steps of other samplers have no density."""
        return None

    def doubts(self, model: str) -> list[str]:
        """See :class:`~.algorithm.Algorithm`: a plan read off the curve of another training."""
        mismatches = plan_mismatches(self._plan, self._config.grid, self._config.sde, model)
        text = "the chunk plan does not fit this training: "
        return [text + " ".join(mismatches)] if mismatches else []

    def sample(self, stream: Stream, request: GroupRequest) -> Trajectory:
        """See :class:`~.algorithm.Algorithm`."""
        config, drawn = self._config, self._drawn(request)
        return rollout(
            stream.velocity,
            request.example,
            config.grid,
            config.sde,
            request.noise,
            request.latent_shape,
            stochastic=noisy_steps(config.noise, self._plan, self._window(request), drawn),
            solver=config.ode_solver,
            device=stream.device,
            batch_size=stream.batch_size,
            keep_means=config.objective.needs_old_mean,
            check_cancel=stream.check_cancel,
        )

    def recorded(self, stream: Stream, group: SampledGroup) -> Trajectory:
        """See :class:`~.algorithm.Algorithm`: what was sampled."""
        return group.trajectory

    def task(self, group: SampledGroup, advantages: Tensor, weight: float) -> GroupTask:
        """See :class:`~.algorithm.Algorithm`."""
        drawn = self._drawn(group.request)
        return GroupTask(group.trajectory, self._plan, advantages, drawn, weight=weight)

    def prepare(self, stream: Stream, task: GroupTask, policy: Policy) -> GroupTask:
        """See :class:`~.algorithm.Algorithm`: the old policy and the reference, if need be."""
        objective = self._config.objective
        if self._must_recompute(policy):
            compiled = policy.is_compiled
            task = recompute_old_policy(stream, task, objective, with_gradients=compiled)
        if objective.needs_reference:
            with base_model(policy):
                task = with_reference(stream, task, objective)
        return task

    def gradient(
        self, stream: Stream, task: GroupTask, *, scale: float, update: int
    ) -> ChunkMeasurement:
        """See :class:`~.algorithm.Algorithm`."""
        is_first = update == 0
        statistics, passes = accumulate_group(
            stream, task, self._config.objective, scale=scale, is_on_policy=is_first
        )
        first_error = float(statistics.deviation.max()) if is_first else 0.0
        return ChunkMeasurement(statistics, passes, first_error)

    def report(self, measured: ChunkMeasurement, iteration: int) -> dict[str, object]:
        """See :class:`~.algorithm.Algorithm`."""
        objective, first_error = self._config.objective, measured.first_error
        if first_error > objective.clip_low:
            log.warning(
                "ratio self-test failed: the first update of iteration %d should see a ratio of 1 "
                "but is off by %.1e, more than the clip range, so rounding is clipped as if the "
                "policy had moved; set optimizer.recompute_log_p, set batch_size to 1, or train in "
                "float32",
                iteration,
                first_error,
            )
        return {
            "ratio_error_first_update": first_error,
            **measured.statistics.columns(has_reference=objective.kl_ref > 0),
            "trained_passes": measured.passes,
        }

    def _window(self, request: GroupRequest) -> range:
        """The chunks that an iteration may train."""
        config = self._config
        return window_chunks(config.window, self._plan, request.iteration, config.seed)

    def _drawn(self, request: GroupRequest) -> Tensor:
        """The chunks that the samples of a request train on, bool, shape (G, K)."""
        config = self._config
        seed = derive_seed(config.seed, "chunks", request.iteration, request.number)
        whole_group = draw_chunks(
            self._plan, config.chunk_fraction, config.group_size, seed, self._window(request)
        )
        return whole_group[request.samples]

    def _must_recompute(self, policy: Policy) -> bool:
        settings = self._config.optimizer
        if settings.recompute_log_p is not None:
            return settings.recompute_log_p
        is_reused = settings.updates_per_rollout * settings.epochs > 1
        return is_reused and policy.device.type != "cpu"
