"""The optimiser steps of one iteration, from scored trajectories to a moved adapter."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..method.cancel import CheckCancel
from ..method.chunk_statistics import ChunkStatistics
from ..method.policy import Policy, Velocity
from ..method.streaming import GroupTask, accumulate_group, recompute_old_policy, with_reference
from ..processes.collective import Processes
from .batch_limit import BatchLimit
from .config import TrainConfig
from .cost import smallest
from .metrics import UpdateReport
from .optimizer import AdapterOptimizer

__all__ = ["Updater"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Updater:
    """Steps a policy's adapter."""

    policy: Policy
    optimizer: AdapterOptimizer
    config: TrainConfig
    limit: BatchLimit
    check_cancel: CheckCancel
    """Called after every micro-step."""
    processes: Processes

    def __call__(
        self,
        velocity: Velocity,
        tasks: Sequence[GroupTask | None],
        iteration: int,
        progress: Callable[[float], None],
    ) -> UpdateReport:
        """Take the steps of one iteration; the first is on-policy.

        Args:
            velocity: The model, adapter on.
            tasks: One for each group of the rollout; None for groups of other processes.
            iteration: 0-based.
            progress: Called with the fraction done.

        Raises:
            FloatingPointError: The gradient is not finite.
            NothingFits: Memory ran out with one sample at a time.
        """
        settings = self.config.optimizer
        count = settings.updates_per_rollout * settings.epochs
        prepared, reports, norms, passes, first_error = tasks, [], [], 0, 0.0

        def gradient(number: int) -> list[tuple[ChunkStatistics, int]]:
            nonlocal prepared
            if number == 0:
                prepared = self._prepared(velocity, tasks)  # with the batch shapes of this try
            return self._accumulate(velocity, prepared, number)

        for number in range(count):
            found = self.limit.attempt(partial(gradient, number))
            reports += [report for report, _ in found]
            passes += sum(samples for _, samples in found)
            self.processes.sum_gradients(self.policy.adapter.parameters())
            norms.append(self.optimizer.step(iteration * count + number))
            if number == 0:
                errors = [float(report.deviation.max()) for report in reports]
                first_error = max(errors, default=0.0)
            progress((number + 1) / count)
        statistics = sum(reports, ChunkStatistics.none(self.config.plan.count))
        found = self.processes.gather((statistics, passes, first_error))
        first_error = max(error for _, _, error in found)
        if first_error > self.config.objective.clip_low:
            log.warning(
                "ratio self-test failed: the first update of iteration %d should see a ratio of 1 "
                "but is off by %.1e, more than the clip range, so rounding is clipped as if the "
                "policy had moved; set optimizer.recompute_log_p, set batch_size to 1, or train in "
                "float32",
                iteration,
                first_error,
            )
        return UpdateReport(
            sum((part for part, _, _ in found[1:]), found[0][0]),
            first_error,
            norms,
            sum(passes for _, passes, _ in found),
        )

    def _prepared(
        self, velocity: Velocity, tasks: Sequence[GroupTask | None]
    ) -> Sequence[GroupTask | None]:
        """Measure what the updates compare with: the old policy and the reference, if need be."""

        def each(measure: Callable[..., GroupTask]) -> list[GroupTask | None]:
            return [task and measure(velocity, task, **self._streaming) for task in tasks]

        if self._must_recompute:
            compiled = getattr(self.policy, "is_compiled", False)
            tasks = each(partial(recompute_old_policy, with_gradients=compiled))
        if self.config.objective.needs_reference:
            with self.policy.adapter.disabled():
                tasks = each(with_reference)
        return tasks

    def _accumulate(
        self, velocity: Velocity, tasks: Sequence[GroupTask | None], number: int
    ) -> list[tuple[ChunkStatistics, int]]:
        """Leave the gradient of one update in the adapter; see :func:`accumulate_group`."""
        self.optimizer.clear()  # a try that ran out of memory left part of a gradient behind
        every = self.config.optimizer.updates_per_rollout
        part = tasks[number % every :: every]
        return [
            accumulate_group(
                velocity,
                task,
                scale=1.0 / len(part),
                is_on_policy=number == 0,
                **self._streaming,
            )
            for task in part
            if task is not None
        ]

    @property
    def _streaming(self) -> dict[str, Any]:
        """Arguments shared by everything that replays recorded steps."""
        return {
            "plan": self.config.plan,
            "config": self.config.objective,
            "device": self.policy.device,
            "batch_size": smallest([self.config.update_batch_size, self.limit.size]),
            "mixes_times": getattr(self.policy, "mixes_times", False),
            "check_cancel": self.check_cancel,
        }

    @property
    def _must_recompute(self) -> bool:
        settings = self.config.optimizer
        if settings.recompute_log_p is not None:
            return settings.recompute_log_p
        is_reused = settings.updates_per_rollout * settings.epochs > 1
        return is_reused and self.policy.device.type != "cpu"
