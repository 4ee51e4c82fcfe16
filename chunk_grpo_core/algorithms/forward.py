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
from typing import Protocol

from torch import Tensor

from ..method.chunks import ChunkPlan
from ..method.matching import ForwardConfig, draw_times
from ..method.matching_stream import (
    MatchingMeasurement,
    MatchingTask,
    accumulate_matching,
    with_old_policy,
    with_reference_velocity,
)
from ..method.noise import Noise, derive_seed
from ..method.objective import ObjectiveConfig
from ..method.policy import Policy, base_model
from ..method.rollout import Trajectory, rollout
from ..method.rules import SdeConfig
from ..method.sampler import Sampler
from ..method.schedule import TimeGrid
from ..method.stream import Stream
from ..method.windows import WindowConfig
from ..settings.declared import changed_fields
from .algorithm import GroupRequest, SampledGroup

__all__ = ["Forward", "ForwardSettings"]

log = logging.getLogger(__name__)

_RECORDED = 2
"""Samples of a group that are sampled again, with noise, for the self-test."""
_FIRST_ERROR = 1e-2
"""Largest relative difference of the velocity of first updates that rounding explains."""


class OptimizerSettings(Protocol):
    """What the forward form asks of an OptimizerConfig."""

    @property
    def updates_per_rollout(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def recompute_log_p(self) -> bool | None: ...


class ForwardSettings(Protocol):
    """The settings that the forward form reads; a TrainConfig has them and says what they mean."""

    @property
    def grid(self) -> TimeGrid: ...
    @property
    def plan(self) -> ChunkPlan | None: ...
    @property
    def sde(self) -> SdeConfig: ...
    @property
    def objective(self) -> ObjectiveConfig: ...
    @property
    def forward(self) -> ForwardConfig: ...
    @property
    def optimizer(self) -> OptimizerSettings: ...
    @property
    def window(self) -> WindowConfig: ...
    @property
    def chunk_fraction(self) -> float: ...
    @property
    def noise(self) -> str: ...
    @property
    def ode_solver(self) -> str: ...
    @property
    def share_initial_noise(self) -> bool: ...
    @property
    def seed(self) -> int: ...


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
                beside a sampler.
        """
        _refuse_settings_of_chunks(config)
        _check_sampling(config, sampler)
        count, levels = config.forward.times, config.grid.steps
        if config.forward.time_distribution == "grid" and count > levels:
            raise ValueError(
                f"forward.times is {count}, but the grid has {levels} levels above 0 to choose "
                'from; take fewer times, more steps, or time_distribution "uniform"'
            )
        forward = config.forward
        if forward.old == "average" and not forward.needs_old:
            raise ValueError(
                f'forward.old is "average", but forward.objective is "{forward.objective}", which '
                'compares with no old policy; use objective "nft" or "elbo", or old "rollout"'
            )
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
        if not self._config.forward.needs_reference:
            return [
                "forward.kl_ref is 0 and forward.norm_guard is 0: nothing holds the model to what "
                "it was, and pictures may spoil while the reward still rises; watch velocity_norm"
            ]
        return []

    def sample(self, stream: Stream, request: GroupRequest) -> Trajectory:
        """See :class:`~.algorithm.Algorithm`."""
        if self._sampler is None:
            return self._rollout(stream, request, self._config.sde, request.noise)
        example, grid, noise = request.example, self._config.grid, request.noise
        x_1 = noise.initial(request.latent_shape)
        x_0 = self._sampler.sample(stream, example, grid, x_1, noise.step_seeds)
        return Trajectory.of_ends(example, grid, x_1, x_0)

    def recorded(self, stream: Stream, group: SampledGroup) -> Trajectory:
        """See :class:`~.algorithm.Algorithm`: a small group with noise, which has densities."""
        request = group.request
        seed = derive_seed(request.noise.seed, "recorded")
        sde = self._config.sde if self._config.sde.is_stochastic else SdeConfig()
        return self._rollout(stream, request, sde, Noise(False, seed, _RECORDED))

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
        x_0 = group.trajectory.x_0
        return MatchingTask(request.example, x_0, noised, advantages, weight, request.number)

    def prepare(self, stream: Stream, task: MatchingTask, policy: Policy) -> MatchingTask:
        """See :class:`~.algorithm.Algorithm`: the reference, and the old policy if need be."""
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

    def _rollout(
        self, stream: Stream, request: GroupRequest, sde: SdeConfig, noise: Noise
    ) -> Trajectory:
        return rollout(
            stream.velocity,
            request.example,
            self._config.grid,
            sde,
            noise,
            request.latent_shape,
            solver=self._config.ode_solver,
            device=stream.device,
            batch_size=stream.batch_size,
            check_cancel=stream.check_cancel,
        )

    def _compares_with_old(self, task: MatchingTask) -> bool:
        """Whether an update after the first one trains this group, under an objective that then
        looks back."""
        optimizer, forward = self._config.optimizer, self._config.forward
        later = optimizer.epochs > 1 or task.number % optimizer.updates_per_rollout > 0
        return forward.old == "average" or (forward.needs_old and later)


def _check_sampling(config: ForwardSettings, sampler: Sampler | None) -> None:
    """Refuse a walk that nobody takes, and rollouts that cannot differ.

    Raises:
        ValueError: See :meth:`Forward.__init__`.
    """
    sde, is_noisy = config.sde, config.sde.is_stochastic
    if sampler is not None and is_noisy:
        raise ValueError(
            f"sde is {sde.rule} with eta {sde.eta}, but the sampler {sampler.name} makes the "
            'rollouts; set sde.rule to "ode"'
        )
    if sampler is not None and config.ode_solver != "euler":
        raise ValueError(
            f"ode_solver is {config.ode_solver!r}, but the sampler {sampler.name} makes the "
            "rollouts; leave it out"
        )
    if is_noisy and config.ode_solver != "euler":
        raise ValueError(
            f"ode_solver is {config.ode_solver!r}, but every step takes noise, so that none "
            'follows the ODE; set sde.rule to "ode"'
        )
    if config.share_initial_noise and not (is_noisy or (sampler and sampler.draws_noise)):
        who = f"sde is {sde.rule} with eta {sde.eta}" if sampler is None else sampler.name
        draws = "" if sampler is None else " draws no noise"
        raise ValueError(
            f"share_initial_noise is true and {who}{draws}: without noise, all pictures of a group "
            "would be the same; set share_initial_noise to false"
        )


def _refuse_settings_of_chunks(config: ForwardSettings) -> None:
    """Refuse what has no effect here.

    Raises:
        ValueError: A setting of Chunk-GRPO alone is set.
    """
    if config.plan is not None:
        raise ValueError(
            "plan is set, but the algorithm forward trains no chunks of steps; leave the plan out"
        )
    for name, value, unset in (
        ("chunk_fraction", config.chunk_fraction, 0.5),
        ("noise", config.noise, "all"),
        ("window.kind", config.window.kind, "all"),
        ("optimizer.recompute_log_p", config.optimizer.recompute_log_p, None),
    ):
        if value != unset:
            raise ValueError(
                f"{name} is {value!r}, which has no effect in the algorithm forward; leave it out"
            )
    for name in changed_fields(config.objective):
        raise ValueError(
            f"objective.{name} is {getattr(config.objective, name)!r}, but the algorithm forward "
            "has its own objective, with settings that begin with forward.; leave it out"
        )
