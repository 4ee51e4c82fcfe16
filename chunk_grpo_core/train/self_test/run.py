"""The self-test as a whole: cells, gradients, ratios, and when a training does what."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...algorithms.algorithm import Algorithm, SampledGroup
from ...method.cancel import CheckCancel, never_cancel
from ...method.noise import derive_seed
from ...method.policy import Policy, Velocity, trained_adapter
from ...method.replay import replay_step
from ...method.reward import Reward, RewardBatch
from ...method.rollout import Trajectory
from ...method.stream import Stream
from ..batch_limit import BatchLimit
from ..config import TrainConfig
from ..cost import timed
from .cells import BATCH, STANDARD, Cell, Effort, cells_of
from .gradients import GradientTest
from .moves import Model
from .replays import RatioErrors, check_records
from .reward_chain import RewardChain
from .verdict import GradientsDiffer, SelfTest

__all__ = ["SelfTests", "self_test"]

log = logging.getLogger(__name__)

_CLIP = 5e-5
"""That of the paper."""


def self_test(
    velocity: Velocity,
    parameters: Sequence[nn.Parameter],
    groups: Sequence[Trajectory],
    *,
    device: torch.device | str = "cpu",
    limit: BatchLimit | None = None,
    check_cancel: CheckCancel = never_cancel,
    clip: float = _CLIP,
    effort: Effort = STANDARD,
    turn: int = 0,
) -> SelfTest:
    """Compare derivatives with finite differences, and recorded log-densities with their replays.

    Adapter and random numbers stay as they are.

    Args:
        velocity: The model, adapter on, as it will be trained.
        parameters: The adapter's.
        groups: What this very policy has sampled, each with at least one stochastic step.
        device: Where the model wants its input.
        limit: Samples that fit into memory at once. A test that does not fit raises; it can be
            done again.
        check_cancel: Called after every call of the model.
        clip: The smaller half of the clip range, which limits the ratio error.
        effort: How much to measure.
        turn: Another one looks at other steps and samples.

    Raises:
        SelfTestFailed: No gradient can be computed, the adapter has no effect, a derivative is
            wrong, or the policy is not the one that sampled; the message says what to do.
    """
    limit = limit or BatchLimit()
    model = Model(
        velocity=velocity,
        parameters=parameters,
        device=device,
        limit=limit,
        check_cancel=check_cancel,
    )
    check_records(groups)
    test = GradientTest(model, effort)
    ratio_errors = []
    cells = cells_of(groups, effort.cells, min(BATCH, limit.size or BATCH), turn)
    for number, cell in enumerate(cells):
        at = model.backward(cell)
        ratio_errors.append(_ratio_error(cell, at.log_p))
        test.cell(number, cell, at)
    if effort.is_thorough:
        ratio_errors += _of_all_steps(model, groups)
    worst = test.close()
    ratio = RatioErrors.of(ratio_errors, clip, test.rounding_of_log_p)
    result = SelfTest(
        derivative=worst.derivative,
        difference=worst.difference,
        error=worst.error,
        tolerance=worst.tolerance,
        ratio_error=ratio.largest,
        ratio_limit=ratio.limit,
        directions=len(test.comparisons),
        cells=len(cells),
    )
    log.info("self-test: %s", result)
    ratio.check()
    return result


class SelfTests:
    """What a training tests in its first iteration: the reward chain, then the gradients."""

    result: SelfTest | None = None
    """What the test of the gradients said, once it is done."""

    def __init__(self, policy: Policy, reward: Reward, config: TrainConfig) -> None:
        """Prepare; with ``config.self_test`` off nothing is tested."""
        self._policy, self._objective, self._seed = policy, config.objective, config.seed
        self._chain = RewardChain(policy, reward) if config.self_test else None
        self._is_tested = not config.self_test
        self._heard, self._kept = 0, -1
        self._seconds: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """What the tests took."""
        return sum(self._seconds.values())

    def keep(self, group: Trajectory, images: torch.Tensor, valid: torch.Tensor) -> None:
        """Hear of a group, images (G, H, W, 3), and which of them have a score (G,)."""
        if self._chain:
            turn, self._heard = self._turn(self._heard), self._heard + 1
            if turn > self._kept and valid.any():
                self._chain.keep(group, images)
                self._kept = turn

    def _turn(self, number: int) -> int:
        """Groups with large numbers are looked at; which these are depends on the seed of the run,
        so that over runs every group has its turn."""
        return derive_seed("self-test", self._seed, number)

    def check_rewards(
        self,
        groups: Sequence[SampledGroup],
        rewards: Sequence[RewardBatch],
        seconds: float,
    ) -> None:
        """Check the reward chain, once.

        Args:
            groups: Of this process.
            rewards: Of every group of the iteration.
            seconds: That sampling took.

        Raises:
            SelfTestFailed: A score does not belong to its sample.
        """
        if self._chain:
            with timed(self._seconds, "rewards"):
                self._chain.check(groups, rewards, seconds)
            self._chain = None

    def check_gradients(
        self,
        stream: Stream,
        groups: Sequence[SampledGroup],
        algorithm: Algorithm[Any, Any],
        limit: BatchLimit,
    ) -> None:
        """:func:`self_test`, once, on those groups that have a step with noise, if there are any.

        Args:
            stream: The model, adapter on.
            groups: Of this process.
            algorithm: Says what is replayed of them.
            limit: Samples that fit into memory at once.

        Raises:
            SelfTestFailed: See :func:`self_test`.
        """
        if self._is_tested:
            return
        with timed(self._seconds, "gradients"):
            order = sorted(range(len(groups)), key=self._turn, reverse=True)
            in_turn = [groups[number] for number in order]
            trajectories = [group.trajectory for group in in_turn]
            if not any(trajectory.stochastic.any() for trajectory in trajectories):
                trajectories = [algorithm.recorded(stream, g) for g in in_turn[: STANDARD.cells]]
            if noisy := [trajectory for trajectory in trajectories if trajectory.stochastic.any()]:
                self._twice_if_in_doubt(stream, noisy, limit)
            else:
                log.warning("self_test is on, but no step took noise, so gradients are not tested")
        self._is_tested = True

    def _twice_if_in_doubt(
        self, stream: Stream, noisy: Sequence[Trajectory], limit: BatchLimit
    ) -> None:
        """:func:`self_test`; where rounding is large, a gradient must be wrong in two places.

        Raises:
            SelfTestFailed: See :func:`self_test`.
        """

        def test(turn: int) -> None:
            self.result = self_test(
                stream.velocity,
                trained_adapter(self._policy).parameters(),
                noisy,
                device=self._policy.device,
                limit=limit,
                check_cancel=stream.check_cancel,
                clip=min(self._objective.clip_low, self._objective.clip_high),
                turn=turn,
            )

        try:
            test(0)
        except GradientsDiffer as error:
            if error.is_fine:
                raise
            log.warning("%s (This model rounds coarsely; it is measured again elsewhere.)", error)
            test(1)


def _ratio_error(cell: Cell, log_p: torch.Tensor) -> float:
    recorded = cell.trajectory.log_p[cell.step, cell.samples]
    return float((log_p - recorded).expm1().abs().max())


def _of_all_steps(model: Model, groups: Sequence[Trajectory]) -> list[float]:
    """Ratio errors of one sample at every step of every group."""
    errors = []
    for trajectory in groups:
        for step, noisy in enumerate(trajectory.stochastic):
            samples = noisy.nonzero().flatten()
            if not len(samples):
                continue
            cell = Cell(trajectory, step, samples[step % len(samples)][None])
            with torch.no_grad():
                new = replay_step(model.velocity, trajectory, step, cell.samples, model.device)
            model.check_cancel()
            errors.append(_ratio_error(cell, new.log_p.cpu()))
    return errors
