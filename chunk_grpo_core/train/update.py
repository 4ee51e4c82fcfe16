"""The optimiser steps of one iteration, from scored groups to a moved adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

from ..algorithms.algorithm import Algorithm
from ..method.cancel import CheckCancel
from ..method.policy import Policy, Velocity, trained_adapter
from ..method.stream import Stream
from ..processes.collective import Processes
from .batch_limit import BatchLimit
from .config import TrainConfig
from .cost import smallest
from .metrics import UpdateReport
from .old_policy import OldPolicy
from .optimizer import AdapterOptimizer

__all__ = ["Updater"]


@dataclass(frozen=True, kw_only=True)
class Updater:
    """Steps a policy's adapter along the gradients of an algorithm."""

    policy: Policy
    algorithm: Algorithm[Any, Any]
    optimizer: AdapterOptimizer
    config: TrainConfig
    limit: BatchLimit
    old: OldPolicy
    processes: Processes
    check_cancel: CheckCancel
    """Called after every micro-step."""

    def steps(
        self,
        velocity: Velocity,
        tasks: list[Any],
        iteration: int,
        progress: Callable[[float], None],
    ) -> UpdateReport:
        """Take the steps of one iteration; the first is on-policy.

        Args:
            velocity: The model, adapter on.
            tasks: The algorithm's, one for each group of the iteration; None for groups of other
                processes.
            iteration: 0-based.
            progress: Called with the fraction done.

        Raises:
            FloatingPointError: The gradient is not finite.
            NothingFits: Memory ran out with one sample at a time.
        """
        updates = self.config.optimizer.updates_per_rollout * self.config.optimizer.epochs
        measurements, grad_norms = [], []
        for update in range(updates):
            accumulate = partial(self._accumulate, velocity, tasks, update)
            tasks, measured = self.limit.attempt(accumulate)
            measurements += measured
            self.processes.sum_gradients(trained_adapter(self.policy).parameters())
            grad_norms.append(self.optimizer.step(iteration * updates + update))
            progress((update + 1) / updates)
        of_all = reduce(add, self.processes.gather(reduce(add, measurements)))
        return UpdateReport(grad_norms, self.algorithm.report(of_all, iteration))

    def _accumulate(
        self, velocity: Velocity, tasks: list[Any], update: int
    ) -> tuple[list[Any], list[Any]]:
        """Leave the gradient of one update in the adapter.

        Returns:
            The tasks, which the first update prepares for all, and what was measured of each.
        """
        self.optimizer.clear()  # a try that ran out of memory left part of a gradient behind
        stream = Stream.of(
            self.policy,
            velocity,
            batch_size=smallest([self.config.update_batch_size, self.limit.size]),
            check_cancel=self.check_cancel,
        )
        algorithm, every = self.algorithm, self.config.optimizer.updates_per_rollout
        if update == 0:  # with the batch shapes of this try
            with self.old.applied():
                tasks = [task and algorithm.prepare(stream, task, self.policy) for task in tasks]
        chosen = tasks[update % every :: every]
        return tasks, [
            algorithm.gradient(stream, task, scale=1.0 / len(chosen), update=update)
            for task in chosen
            if task is not None
        ]
