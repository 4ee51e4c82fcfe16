"""The loop: sample by step, score, compare inside the group, update with an algorithm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from ..algorithms import algorithm_of, name_of
from ..algorithms.algorithm import Algorithm, SampledGroup
from ..method.advantage import Advantages, iteration_advantages
from ..method.cancel import CheckCancel, never_cancel
from ..method.policy import Policy, Velocity, trained_adapter
from ..method.reward import Reward, RewardBatch, is_scale_free
from ..method.rollout import Trajectory
from ..method.sampler import name_of_sampler
from ..method.stream import Stream
from ..processes.collective import Processes
from ..prompts.example import Prompt, examples_of
from .alarm_watch import AlarmWatch
from .alarms import AlarmStop
from .batch_limit import BatchLimit
from .call_progress import CallProgress
from .checkpoint import Checkpoint, Checkpoints, TrainingState, save_as_it_ends
from .config import TrainConfig
from .cost import largest, peak_gib, smallest, timed
from .events import (
    AdvantagesEnd,
    IterationEnd,
    Listener,
    PhaseProgress,
    RolloutEnd,
    RunStart,
    StopWish,
    StopWished,
    ignore,
    never_stop,
)
from .judge import judge_of
from .may_change import Change, load_to_resume, trained_with
from .metrics import UpdateReport, metrics_row, picture_spread, some_pixels
from .old_policy import OldPolicy
from .optimizer import AdapterOptimizer
from .patience import Patience
from .requests import requests_of_iteration
from .score_queue import GroupScorer, ScoreQueue, whole_groups
from .self_test import SelfTests
from .update import Updater
from .velocity_norm import velocity_norm

__all__ = ["Trainer"]

log = logging.getLogger(__name__)
T = TypeVar("T")


class Trainer:
    """Train a policy's adapter on a reward: adapter, optimiser and iteration are its state."""

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        prompts: Sequence[Prompt],
        config: TrainConfig,
        *,
        algorithm: Algorithm[Any, Any] | None = None,
        checkpoints: Checkpoints | None = None,
        facts: Mapping[str, object] | None = None,
        listener: Listener = ignore,
        check_cancel: CheckCancel = never_cancel,
        wants_stop: StopWish = never_stop,
        limit: BatchLimit | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Set up a run at iteration 0; call :meth:`resume` to go on with an earlier one.

        Args:
            policy: Model and adapter.
            reward: What to maximise.
            prompts: What to train on, at least one; their metadata goes to the reward.
            config: All settings.
            algorithm: How to train; the one that ``config.algorithm`` names if None. Its name
                stands in ``self.config``.
            checkpoints: Where they go; None keeps none.
            facts: What the training depends on beside its settings, the model, the reward and the
                prompts, by names of their own; a checkpoint remembers them.
            listener: Hears every event; of several processes only that of the first does, and only
                of its own groups.
            check_cancel: Raises to stop; called after every micro-step.
            wants_stop: Once true, training ends as if this were its last iteration: after its
                updates if they have begun, at once otherwise. The first iteration is always done.
            limit: Samples that fit into memory at once; begins at ``config.batch_size`` if None.
            processes: Those that train together; this one alone if None.

        Raises:
            ValueError: There are no prompts, the policy has no adapter, the settings do not suit
                the algorithm, or the processes cannot share the prompts.
        """
        if not prompts:
            raise ValueError("there are no prompts to train on; give at least one")
        self._algorithm = algorithm or algorithm_of(config)
        if (name := name_of(self._algorithm)) != config.algorithm:
            config = replace(config, algorithm=name)
        self._limit = limit or BatchLimit(size=config.batch_size)
        self.policy, self.reward = policy, judge_of(reward, policy, config, self._limit)
        self.config, self.prompts = config, examples_of(prompts)
        self.iteration = self._saved = 0
        self._adapter, self._processes = trained_adapter(policy), processes or Processes()
        self._shares = self._processes.shares(config.prompts_per_iteration, config.group_size)
        writes = self._processes.is_writer
        self._checkpoints, self._listen = (checkpoints, listener) if writes else (None, ignore)
        self._calls = CallProgress(lambda *done: self._listen(PhaseProgress(self.iteration, *done)))
        check_cancel = self._calls.after(check_cancel)
        self._check_cancel, self._wants_stop = check_cancel, wants_stop
        self._processes.copy_from_writer(self._adapter.parameters())
        self._optimizer = AdapterOptimizer(self._adapter.parameters(), config.optimizer)
        self._old = OldPolicy(self._adapter.parameters(), self._algorithm.old_decay)
        self._decode_limit = replace(self._limit, size=None)
        self._updater = Updater(
            policy=policy,
            algorithm=self._algorithm,
            optimizer=self._optimizer,
            config=config,
            limit=self._limit,
            old=self._old,
            processes=self._processes,
            check_cancel=check_cancel,
        )
        self.self_tests = SelfTests(policy, self.reward, config)
        self._facts = {"sampler": name_of_sampler(self._algorithm.sampler), **(facts or {})}
        self.changes: tuple[Change, ...] = ()
        self._alarms = AlarmWatch(config, self._listen)

    @cached_property
    def trained_with(self) -> dict[str, object]:
        """Everything that the training depends on; asked for where it is compared or kept."""
        return trained_with(self.config, self.policy, self.reward, self.prompts, self._facts)

    def resume(self) -> int:
        """Go on from the newest checkpoint, if there is one; returns iterations already done.

        ``changes`` says afterwards which settings differ from those of the checkpoint.

        Raises:
            ValueError: The checkpoint was trained with something that may not change
                (``may_change.py``); the message names it.
        """
        checkpoint, self.changes = self._processes.from_writer(
            lambda: load_to_resume(self._checkpoints, self.trained_with)
        )
        if checkpoint:
            self.load(checkpoint)
        return self.iteration

    def save(self) -> None:
        """Write a checkpoint of the present state, if checkpoints are kept."""
        if self._checkpoints:
            self._checkpoints.save(self.state())
            self._saved = self.iteration

    def state(self) -> Checkpoint:
        """A copy of the present state, on the CPU."""
        state = TrainingState(self.iteration, self.trained_with)
        tensors = {**self._optimizer.tensors(), **self._old.tensors()}
        return Checkpoint(state, self._adapter.state_dict(), tensors)

    def load(self, checkpoint: Checkpoint) -> None:
        """Take a state of this training, as :meth:`state` gave it."""
        self._adapter.load_state_dict(checkpoint.adapter)
        self._optimizer.restore(self._old.restore(checkpoint.optimizer))
        self.iteration = checkpoint.iteration

    def train(self, watch: Callable[[int], object] = lambda done: None) -> None:
        """Run the iterations that are left. At the end the adapter holds the average of its weights
        if ``optimizer.ema_decay`` is set.

        Args:
            watch: Called before every iteration with those done; training ends if it says true.

        Raises:
            Cancelled: (or whatever ``check_cancel`` raises) the run was stopped; a checkpoint of
                the iterations that were done is left.
            AlarmStop: One of the alarms of ``config.run.stop_on`` was raised; a checkpoint is left.
            FloatingPointError: The gradient is not finite.
            NothingScored: No picture of an iteration has a score, also after waiting; it is not
                counted as done.
            SelfTestFailed: Gradients through the policy are wrong; see :mod:`.self_test`.
        """
        for doubt in self._algorithm.doubts(self.policy.name):
            log.warning("%s", doubt)
        self._optimizer.clear()  # a cancelled run left half an update behind
        self._listen(RunStart(self.iteration, self.config.iterations))
        self._saved, before = self.iteration, None
        try:
            while self.iteration < self.config.iterations and not self._is_stopped():
                before = self.state() if self._has_unsaved else None
                if watch(self.iteration):
                    break
                try:
                    row = self._iterate()
                except StopWished:
                    break
                alarm = self._alarms.judge(row)
                is_last = alarm is not None or self.iteration == self.config.iterations
                if is_last or self.iteration % self.config.checkpoint_every == 0:
                    self.save()
                if alarm is not None:
                    raise AlarmStop(alarm)
            if self._has_unsaved:
                self.save()
        except BaseException as error:  # cancelled, Ctrl-C, out of memory: keep whole iterations
            if self._checkpoints and self._has_unsaved:
                whole = before if before and before.iteration == self.iteration else self.state()
                save_as_it_ends(self._checkpoints, whole, self._saved, error)
            raise
        self._optimizer.finish()

    @property
    def _has_unsaved(self) -> bool:
        return self._checkpoints is not None and self.iteration > self._saved

    def _iterate(self) -> dict[str, object]:
        seconds: dict[str, float] = {}
        self._pixels: list[torch.Tensor] = []
        score = GroupScorer(self.policy, self.reward, self._decode_limit)
        in_thread = self.config.score_while_sampling
        with ScoreQueue(score, score.again, self._tell, in_thread=in_thread) as queue:
            with timed(seconds, "rollout"), self._calls.phase("rollout"):
                groups = self.sample(queue)
            with timed(seconds, "score"), self._calls.phase("score"):
                rewards = self.score(queue)
                self.self_tests.check_rewards(groups, rewards, seconds["rollout"])
                mine, self._pixels = list(zip(self._shares, self._pixels, strict=True)), []
                spread = picture_spread([p for of in self._processes.gather(mine) for p in of])
        del mine  # the update needs memory
        advantages = self.compare(groups, rewards)
        with timed(seconds, "update"), self._calls.phase("update"):
            report = self.update(groups, advantages)
        row = metrics_row(
            self.iteration,
            self.reward.name,
            rewards,
            advantages,
            report,
            {**seconds, "total": sum(seconds.values())},
            largest(self._processes.gather(peak_gib(self.policy.device))),
            batch_size=smallest(self._processes.gather(self._limit.size)),
            picture_spread=spread,
        )
        self._old.take()
        self.iteration += 1  # first: whatever a listener does, this iteration is whole
        self._listen(IterationEnd(self.iteration - 1, row))
        return row

    def sample(self, queue: ScoreQueue) -> list[SampledGroup]:
        """Roll out the groups of this process, and queue each for its scores."""
        requests = requests_of_iteration(
            self.prompts, self.iteration, self._shares, self.config, self.policy.latent_shape
        )

        def phase(velocity: Velocity) -> list[SampledGroup]:
            groups = []
            for request in requests:
                trajectory = self._algorithm.sample(self._stream(velocity, self._check), request)
                groups.append(SampledGroup(request, trajectory))
                queue.add(trajectory)
                self._calls.reach(len(groups) / len(self._shares))
            return groups

        with self._old.applied():
            return self._run(phase)

    def score(self, queue: ScoreQueue) -> list[RewardBatch]:
        """Wait for the scores of the groups of all processes; one batch for each whole group.

        If no picture has one, wait and score the same pictures again, as ``config.run`` says.
        """
        patience = Patience(self.config.run, self._listen, self._check)
        count = self.config.prompts_per_iteration
        rewards = patience.until_scored(
            lambda: whole_groups(self._processes, self._shares, queue.results(), count),
            self.reward.name,
            f"iteration {self.iteration + 1}",
        )
        queue.close()
        return rewards

    def compare(self, groups: Sequence[SampledGroup], rewards: Sequence[RewardBatch]) -> Advantages:
        """Turn the rewards of all groups into advantages."""
        is_balanced = is_scale_free(self.reward)
        advantages = iteration_advantages(rewards, self.config.advantage, is_balanced)
        of_groups = tuple(_own(advantages, group) for group in groups)
        self._listen(AdvantagesEnd(self.iteration, of_groups))
        return advantages

    def update(self, groups: Sequence[SampledGroup], advantages: Advantages) -> UpdateReport:
        """Take the iteration's optimiser steps; the first sees the policy that sampled."""
        tasks: list[Any] = [None] * self.config.prompts_per_iteration
        for group in groups:
            weight = group.trajectory.group_size / self.config.group_size
            task = self._algorithm.task(group, _own(advantages, group), weight)
            tasks[group.request.number] = task

        def phase(velocity: Velocity) -> UpdateReport:
            test, limit = self.self_tests.check_gradients, self._limit
            limit.attempt(lambda: test(self._stream(velocity), groups, self._algorithm, limit))
            return self._updater.steps(
                velocity,
                tasks,
                self.iteration,
                self._calls.reach,
            ).with_norm(velocity_norm(self._stream(velocity), self.policy, groups))

        return self._run(phase)

    def _tell(self, group: Trajectory, images: torch.Tensor, batch: RewardBatch) -> None:
        self._pixels.append(some_pixels(images))
        if self._calls.is_in("score"):  # else the next group is drawn meanwhile
            self._calls.reach(len(self._pixels) / len(self._shares))
        self.self_tests.keep(group, images, batch.valid)
        self._listen(RolloutEnd(self.iteration, group.example, images, batch.known))

    def _run(self, work: Callable[[Velocity], T]) -> T:
        """One phase, with a velocity that never takes more samples than fit."""
        return self.policy.run(lambda velocity: work(self._limit.fit(velocity)))

    def _stream(self, velocity: Velocity, check: CheckCancel | None = None) -> Stream:
        """Calls without gradients, of as many samples as fit."""
        check = check or self._check_cancel
        return Stream.of(self.policy, velocity, batch_size=self._limit.size, check_cancel=check)

    def _is_stopped(self) -> bool:
        """Whether training ends here; the wish of the first process counts for all."""
        return self._processes.from_writer(lambda: self.iteration > 0 and self._wants_stop())

    def _check(self) -> None:
        """Between the calls of an iteration that has changed nothing yet."""
        self._check_cancel()
        if self._processes.count == 1 and self._is_stopped():
            raise StopWished


def _own(advantages: Advantages, group: SampledGroup) -> torch.Tensor:
    """The advantages of the samples of one request."""
    return advantages.values[group.request.number][group.request.samples]
