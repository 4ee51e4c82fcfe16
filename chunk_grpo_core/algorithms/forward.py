"""The forward form: sample with anything, train on noised finished pictures.

1. Roll out without densities: the ODE with the solver of your choice, a noisy rule, or whatever
   sampler is handed over (``method/sampler.py``).
2. Draw K noise levels and fresh noise for every picture (``method/matching.py``).
3. Measure the reference and, where a later update compares with it, the policy that sampled.
4. Stream the gradient of the matching loss, weighted by the advantages; the first update is
   on-policy.

No step of the rollout is trained, so it may have few steps, no noise and any solver: a distilled
model is trained as it is used. A group explores by its different initial noise.

Legend: G samples in a group, K times of a sample.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from torch import Tensor

from ..method.matching_stream import (
    MatchingMeasurement,
    MatchingTask,
    accumulate_matching,
    with_old_policy,
    with_reference_velocity,
)
from ..method.matching_times import draw_times
from ..method.noise import derive_seed
from ..method.policy import Policy, base_model
from ..method.rollout import Trajectory, rollout
from ..method.sampler import Sampler
from ..method.schedule import TimeGrid, coarser_grid
from ..method.stream import Stream
from ..method.walk import sample_ode
from .algorithm import GroupRequest, SampledGroup
from .forward_settings import ForwardSettings, check_forward, doubts_of
from .noisy_group import noisy_group

__all__ = ["Forward"]

log = logging.getLogger(__name__)

_FIRST_ERROR = 1e-2
"""Largest relative difference of the velocity of first updates that rounding explains."""


class Forward:
    """See :class:`~.algorithm.Algorithm`."""

    def __init__(self, config: ForwardSettings, sampler: Sampler | None = None) -> None:
        """Check the settings.

        Args:
            config: Those that the forward form reads.
            sampler: Makes the rollouts, on the levels of ``config.grid``; ``config.sde`` says then
                that the walk takes no noise. The library's own walk if None.

        Raises:
            ValueError: A setting of Chunk-GRPO is set, there are more times than levels, all
                pictures of a group would be the same, or a setting of the library's walk is set
                beside a sampler, or a first pass saves nothing.
        """
        check_forward(config, sampler)
        self._config, self._sampler = config, sampler

    @property
    def old_decay(self) -> float | None:
        """See :class:`~.algorithm.Algorithm`."""
        forward = self._config.forward
        return forward.old_decay if forward.old == "average" else None

    @property
    def sampler(self) -> Sampler | None:
        """See :class:`~.algorithm.Algorithm`."""
        return self._sampler

    def doubts(self, model: str) -> list[str]:
        """See :class:`~.algorithm.Algorithm`."""
        return doubts_of(self._config)

    def sample(self, stream: Stream, request: GroupRequest) -> Trajectory:
        """See :class:`~.algorithm.Algorithm`."""
        if self._sampler is None:
            return rollout(
                stream.velocity,
                request.example,
                self._ranked,
                self._config.sde,
                request.noise,
                request.latent_shape,
                solver=self._config.ode_solver,
                device=stream.device,
                batch_size=stream.batch_size,
                check_cancel=stream.check_cancel,
            )
        example, noise = request.example, request.noise
        x_1 = noise.initial(request.latent_shape)
        x_0 = self._sampler.sample(stream, example, self._ranked, x_1, noise.step_seeds)
        return Trajectory.of_ends(example, self._ranked, x_1, x_0)

    def recorded(self, stream: Stream, group: SampledGroup) -> Trajectory:
        """See :class:`~.algorithm.Algorithm`: a small group with noise, which has densities."""
        sde = self._config.sde if self._config.sde.is_stochastic else None
        return noisy_group(stream, group.request, self._config.grid, sde)

    def task(self, group: SampledGroup, advantages: Tensor, weight: float) -> MatchingTask:
        """See :class:`~.algorithm.Algorithm`."""
        request, config = group.request, self._config
        noised = draw_times(
            config.forward,
            config.grid.sigmas[:-1],
            request.latent_shape,
            range(request.samples.start, request.samples.stop),
            derive_seed(config.seed, "matching", request.iteration, request.number),
        )
        return MatchingTask(
            request.example,
            group.trajectory.x_0,
            noised,
            advantages,
            weight,
            x_1=group.trajectory.states[0] if config.forward.rank_steps else None,
            seeds=request.noise.step_seeds,
            number=request.number,
        )

    def prepare(self, stream: Stream, task: MatchingTask, policy: Policy) -> MatchingTask:
        """See :class:`~.algorithm.Algorithm`: the pictures themselves if others were scored, the
        reference, and the old policy if need be."""
        if task.x_1 is not None:
            task = self._drawn_again(stream, task, task.x_1)
        if self._compares_with_old(task):
            task = with_old_policy(stream, task, with_gradients=policy.is_compiled)
        if self._config.forward.needs_reference:
            with base_model(policy):
                task = with_reference_velocity(stream, task)
        return task

    def gradient(
        self, stream: Stream, task: MatchingTask, *, scale: float, update: int
    ) -> MatchingMeasurement:
        """See :class:`~.algorithm.Algorithm`."""
        forward = self._config.forward
        is_on_policy = update == 0 and self.old_decay is None
        return accumulate_matching(stream, task, forward, scale=scale, is_on_policy=is_on_policy)

    def report(self, measured: MatchingMeasurement, iteration: int) -> dict[str, object]:
        """See :class:`~.algorithm.Algorithm`."""
        forward, count = self._config.forward, max(measured.passes, 1)
        columns: dict[str, object] = {
            "matching_error": measured.error / count,
            "trained_passes": measured.passes,
        }
        if forward.needs_reference:
            columns["reference_gap"] = measured.gap / count
        if forward.needs_old:
            columns["old_gap"] = measured.move / count
        if (error := measured.first_error) is not None:
            columns["velocity_error_first_update"] = error
            if error > _FIRST_ERROR:
                log.warning(
                    "the first update of iteration %d should see the policy that sampled, but its "
                    "velocity is off by %.1e of its size; set batch_size to 1, or train in float32",
                    iteration,
                    error,
                )
        if forward.objective == "elbo":
            columns["clipped_samples"] = measured.clipped / max(measured.ratios, 1)
        return columns

    @property
    def _ranked(self) -> TimeGrid:
        """The grid of the pictures that are scored."""
        grid, steps = self._config.grid, self._config.forward.rank_steps
        return coarser_grid(grid, steps) if steps else grid

    def _drawn_again(self, stream: Stream, task: MatchingTask, x_1: Tensor) -> MatchingTask:
        """Draw the samples that are trained with all steps, from where they started."""
        kept = task.advantages.nonzero().flatten()
        if not len(kept):
            return task
        config, x_0 = self._config, task.x_0.clone()
        if self._sampler is None:
            x_0[kept] = sample_ode(
                stream.velocity,
                task.example,
                config.grid,
                x_1[kept],
                solver=config.ode_solver,
                device=stream.device,
                batch_size=stream.batch_size,
                check_cancel=stream.check_cancel,
            )
        else:
            seeds = [task.seeds[number] for number in kept.tolist()]
            sampler = self._sampler
            x_0[kept] = sampler.sample(stream, task.example, config.grid, x_1[kept], seeds)
        return replace(task, x_0=x_0)

    def _compares_with_old(self, task: MatchingTask) -> bool:
        """Whether an update after the first one trains this group, under an objective that then
        looks back."""
        optimizer, forward = self._config.optimizer, self._config.forward
        later = optimizer.epochs > 1 or task.number % optimizer.updates_per_rollout > 0
        return forward.old == "average" or (forward.needs_old and later)
