"""The loop: sample by step, score, compare inside the group, optimise by chunk.

Where this loop departs from the official code (github.com/xingzhejun/GCPO, June 2026):

1. A LoRA is trained, not the whole model.
2. The model sees sigma itself, not int(1000 sigma) / 1000.
3. Steps stream through gradient accumulation (``streaming.py``); the official loop sends a chunk
   as one batch. The gradient is the same, peak memory is that of one step.
4. Initial noise is shared inside a group (option), not across all prompts of an iteration.
5. Scores that are missing or not finite are masked and counted.
6. Picture x_0 comes from the deterministic last step, and the reward sees the same picture.
7. Where batch shapes can change last bits (accelerators), old log-probs are measured again in the
   geometry of the update; the official loop compares a batch of one with a batch of a chunk.
8. Chunks are drawn before the rollout, so that noise can be left out where nothing is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from ..method.advantage import iteration_advantages
from ..method.cancel import CheckCancel, never_cancel
from ..method.chunks import draw_chunks
from ..method.noise import Noise, derive_seed
from ..method.plan_mismatches import plan_mismatches
from ..method.policy import Policy, Velocity
from ..method.reward import Reward, RewardBatch, RewardFailed, check_scored
from ..method.rollout import Trajectory, rollout
from ..method.streaming import GroupTask
from ..method.windows import noisy_steps, window_chunks
from ..processes.collective import Processes, Share
from ..prompts.example import Example, Prompt, examples_of
from .background_scoring import Overlap
from .batch_limit import BatchLimit
from .checkpoint import Checkpoint, RunFolder
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
    ignore,
    never_stop,
)
from .metrics import UpdateReport, metrics_row
from .optimizer import AdapterOptimizer
from .self_test import self_test
from .update import Updater

__all__ = ["Trainer", "prompts_of_iteration"]

log = logging.getLogger(__name__)

P = TypeVar("P")
T = TypeVar("T")


def prompts_of_iteration(prompts: Sequence[P], iteration: int, count: int, seed: int) -> list[P]:
    """Walk through the prompts in shuffled order, every prompt once in each epoch."""
    chosen = []
    for position in range(iteration * count, (iteration + 1) * count):
        epoch, index = divmod(position, len(prompts))
        generator = torch.Generator().manual_seed(derive_seed(seed, "prompts", epoch))
        order = torch.randperm(len(prompts), generator=generator)
        chosen.append(prompts[int(order[index])])
    return chosen


class _Stop(Exception):
    """Ends an iteration that has not begun to update."""


class Trainer:
    """Train a policy's adapter on a reward. The only stateful object of the library."""

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        prompts: Sequence[Prompt],
        config: TrainConfig,
        *,
        run_folder: RunFolder | None = None,
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
            run_folder: Where checkpoints go; None keeps nothing.
            listener: Hears every event; of several processes only that of the first does, and only
                of its own groups.
            check_cancel: Raises to stop; called after every micro-step.
            wants_stop: Once true, training ends as if this were its last iteration: after its
                updates if they have begun, at once otherwise. The first iteration is always done.
            limit: Samples that fit into memory at once; begins at ``config.batch_size`` if None.
            processes: Those that train together; this one alone if None.

        Raises:
            ValueError: There are no prompts, or the processes cannot share them.
        """
        if not prompts:
            raise ValueError("there are no prompts to train on; give at least one")
        self.policy, self.reward, self.config = policy, reward, config
        self.prompts = examples_of(prompts)
        self.iteration = 0
        self._processes = processes or Processes()
        self._shares = self._processes.shares(config.prompts_per_iteration, config.group_size)
        writes = self._processes.is_writer
        self._folder, self._listen = (run_folder, listener) if writes else (None, ignore)
        self._check_cancel, self._wants_stop = check_cancel, wants_stop
        self._processes.copy_from_writer(policy.adapter.parameters())
        self._optimizer = AdapterOptimizer(policy.adapter.parameters(), config.optimizer)
        self._limit = limit or BatchLimit(size=config.batch_size)
        self._decode_limit = replace(self._limit, size=None)
        self._updater = Updater(
            policy=policy,
            optimizer=self._optimizer,
            config=config,
            limit=self._limit,
            check_cancel=check_cancel,
            processes=self._processes,
        )
        self._is_tested = not config.self_test

    def resume(self) -> int:
        """Go on from the newest checkpoint of the run folder; returns iterations already done."""
        folder = self._folder
        checkpoint = self._processes.from_writer(lambda: folder.load() if folder else None)
        if checkpoint:
            self.policy.adapter.load_state_dict(checkpoint.adapter)
            self._optimizer.restore(checkpoint.optimizer)
            self.iteration = checkpoint.iteration
        return self.iteration

    def save(self) -> None:
        """Write a checkpoint of the present state, if there is a run folder."""
        if self._folder:
            self._folder.save(self._state())

    def _state(self) -> Checkpoint:
        """A copy, on the CPU."""
        return Checkpoint(
            self.iteration, self.policy.adapter.state_dict(), self._optimizer.tensors()
        )

    def train(self, watch: Callable[[int], None] = lambda done: None) -> None:
        """Run the iterations that are left.

        Args:
            watch: Called before every iteration with the number of those done; may use the policy,
                not change it.

        Raises:
            Cancelled: (or whatever ``check_cancel`` raises) the run was stopped; a checkpoint of
                the iterations that were done is left in the run folder.
            FloatingPointError: The gradient is not finite.
            NothingScored: No picture of an iteration has a score; it is not counted as done.
            SelfTestFailed: Gradients through the policy are wrong; see :mod:`.selftest`.

        At the end the adapter holds the average of its weights if ``optimizer.ema_decay`` is set.
        """
        config = self.config
        mismatches = plan_mismatches(config.plan, config.grid, config.sde, self.policy.name)
        if mismatches:
            log.warning("the chunk plan does not fit this training: %s", " ".join(mismatches))
        self._optimizer.clear()  # a cancelled run left half an update behind
        self._listen(RunStart(self.iteration, self.config.iterations))
        saved = self.iteration
        while self.iteration < self.config.iterations and not self._is_stopped():
            start = self._state() if self._folder and self.iteration > saved else None
            try:
                watch(self.iteration)
                self._iterate()
            except _Stop:
                break
            except BaseException:  # cancelled, Ctrl-C, out of memory: keep whole iterations
                if self._folder and start:
                    self._folder.save(start)
                raise
            self.iteration += 1
            done = self.iteration == self.config.iterations
            if done or self.iteration % self.config.checkpoint_every == 0:
                self.save()
                saved = self.iteration
        if self.iteration > saved:
            self.save()
        self._optimizer.finish()

    def _is_stopped(self) -> bool:
        """Whether training ends here; the wish of the first process counts for all."""
        return self._processes.from_writer(lambda: self.iteration > 0 and self._wants_stop())

    def _check(self) -> None:
        """Between the calls of an iteration that has changed nothing yet."""
        self._check_cancel()
        if self._processes.count == 1 and self._is_stopped():
            raise _Stop

    def _iterate(self) -> None:
        config, seconds = self.config, {}
        prompts = prompts_of_iteration(
            self.prompts, self.iteration, config.prompts_per_iteration, config.seed
        )
        drawn = [self._draw(share) for share in self._shares]
        with Overlap(self._score, self._scored, config.score_while_sampling) as scoring:
            with timed(seconds, "rollout"):
                groups = self._run(lambda v: self._sample(v, prompts, drawn, scoring.add))
            with timed(seconds, "score"):
                rewards = self._all_rewards(scoring.results())
        check_scored(rewards, self.reward.name, f"iteration {self.iteration + 1}")
        advantages = iteration_advantages(rewards, config.advantage)
        tasks: list[GroupTask | None] = [None] * len(prompts)
        for share, group, chunks in zip(self._shares, groups, drawn, strict=True):
            values = advantages.values[share.group][share.samples]
            weight = group.group_size / config.group_size
            tasks[share.group] = GroupTask(group, values, chunks, weight=weight)
        compared = tuple(task.advantages for task in tasks if task)
        self._listen(AdvantagesEnd(self.iteration, compared))
        with timed(seconds, "update"):
            report = self._run(lambda velocity: self._update(velocity, tasks))
        seconds["total"] = sum(seconds.values())
        row = metrics_row(
            self.iteration,
            self.reward.name,
            rewards,
            advantages,
            report,
            seconds,
            largest(self._processes.gather(peak_gib(self.policy.device))),
            has_reference=config.objective.kl_ref > 0,
            batch_size=smallest(self._processes.gather(self._limit.size)),
        )
        self._listen(IterationEnd(self.iteration, row))

    def _run(self, work: Callable[[Velocity], T]) -> T:
        """One phase, with a velocity that never takes more samples than fit."""
        return self.policy.run(lambda velocity: work(self._limit.fit(velocity)))

    def _sample(
        self,
        velocity: Velocity,
        prompts: Sequence[Example],
        drawn: Sequence[torch.Tensor],
        on_group: Callable[[Trajectory], None],
    ) -> list[Trajectory]:
        """Roll out the groups of this process, with noise where the config wants it."""
        config = self.config
        groups = []
        for share, chunks in zip(self._shares, drawn, strict=True):
            seed = derive_seed(config.seed, "rollout", self.iteration, share.group)
            groups.append(
                rollout(
                    velocity,
                    prompts[share.group],
                    config.grid,
                    config.sde,
                    Noise(config.share_initial_noise, seed, len(chunks), share.samples.start),
                    self.policy.latent_shape,
                    stochastic=noisy_steps(config.noise, config.plan, self._window, chunks),
                    solver=config.ode_solver,
                    device=self.policy.device,
                    batch_size=self._limit.size,
                    keep_means=config.objective.needs_old_mean,
                    check_cancel=self._check,
                )
            )
            on_group(groups[-1])
            self._progress("rollout", 0.5 * len(groups) / len(self._shares))
        return groups

    def _score(self, group: Trajectory) -> tuple[torch.Tensor, RewardBatch]:
        """Decode a group and score it."""
        images = self._decode_limit.join(self.policy.decode, group.x_0)
        try:
            batch = self.reward.score(images, [group.prompt] * group.group_size)
        except RewardFailed as error:
            log.warning("iteration %d: a group has no reward: %s", self.iteration, error)
            batch = RewardBatch.failed(group.group_size, str(error))
        return images, batch

    def _scored(self, group: Trajectory, found: tuple[torch.Tensor, RewardBatch]) -> RewardBatch:
        self._listen(
            RolloutEnd(self.iteration, Example.of(group.prompt).text, found[0], found[1].known)
        )
        return found[1]

    def _all_rewards(self, own: list[RewardBatch]) -> list[RewardBatch]:
        """The scores of all groups, in their order."""
        parts: list[list[RewardBatch]] = [[] for _ in range(self.config.prompts_per_iteration)]
        for found in self._processes.gather(list(zip(self._shares, own, strict=True))):
            for share, batch in found:
                parts[share.group].append(batch)
        return [RewardBatch.joined(batches) for batches in parts]

    def _draw(self, share: Share) -> torch.Tensor:
        """Draw the chunks that the samples of a share train on."""
        config = self.config
        seed = derive_seed(config.seed, "chunks", self.iteration, share.group)
        group = draw_chunks(
            config.plan, config.chunk_fraction, config.group_size, seed, self._window
        )
        return group[share.samples]

    @property
    def _window(self) -> range:
        """The chunks this iteration may train."""
        config = self.config
        return window_chunks(config.window, config.plan, self.iteration, config.seed)

    def _update(self, velocity: Velocity, tasks: Sequence[GroupTask | None]) -> UpdateReport:
        """Test the gradients if nobody has, then take the iteration's optimiser steps."""
        self._limit.attempt(lambda: self._test(velocity, tasks))
        return self._updater(
            velocity,
            tasks,
            self.iteration,
            lambda fraction: self._progress("update", 0.5 + 0.5 * fraction),
        )

    def _test(self, velocity: Velocity, tasks: Sequence[GroupTask | None]) -> None:
        """Test the gradients once, on the first own group that has a stochastic step."""
        for task in filter(None, tasks):
            if not self._is_tested and task.trajectory.stochastic.any():
                self_test(
                    velocity,
                    self.policy.adapter.parameters(),
                    task.trajectory,
                    device=self.policy.device,
                    limit=self._limit,
                    check_cancel=self._check_cancel,
                )
                self._is_tested = True

    def _progress(self, phase: str, fraction: float) -> None:
        self._listen(PhaseProgress(self.iteration, phase, fraction))
