"""Try a little of a training before it begins, and say what the whole of it will take.

Two held-out prompts are drawn and scored, an iteration of a small part of the training is done
(where that is quick, whole ones, too), and the prompts are drawn again. The adapter is then put
back. Nothing stays on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..algorithms import algorithm_of
from ..algorithms.algorithm import Algorithm
from ..method.cancel import CheckCancel, never_cancel
from ..method.policy import Policy, trained_adapter
from ..method.reward import Reward
from ..processes.collective import Processes
from ..prompts.example import Prompt
from ..rewards.parts import asks
from ..train.batch_limit import BatchLimit
from ..train.config import TrainConfig
from ..train.cost import largest
from ..train.events import (
    Event,
    IterationEnd,
    Listener,
    RolloutEnd,
    RunStart,
    broadcast,
    ignore,
)
from ..train.self_test import SelfTests
from ..train.trainer import Trainer
from ..watch.derived import derived
from ..watch.newest_group import LatestGroup
from .forecast import Check, Timed, iteration_seconds, small_config, whole_config
from .held_out import HeldOut, check_held_out, check_needless

__all__ = ["check_training"]

_ENOUGH = 10.0
"""Seconds of iterations after which no further one is timed."""
_SHORT = 20.0
"""Seconds of an iteration of the training up to which it is itself timed, and not a part of it."""
_PROMPTS = 2
"""Held-out prompts that are measured."""


def check_training(
    policy: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    config: TrainConfig,
    *,
    algorithm: Callable[[TrainConfig], Algorithm[Any, Any]] = algorithm_of,
    evaluation_seeds: int = 4,
    listener: Listener = ignore,
    check_cancel: CheckCancel = never_cancel,
    limit: BatchLimit | None = None,
) -> Check:
    """Try a small part of a training; adapter and disk are as before in the end.

    Args:
        policy: See :func:`~.experiment.run_experiment`, as for all that is not said here.
        reward: It must not ask a person.
        prompts: What would be trained on.
        held_out: What would be measured on.
        config: The settings of the training that is to be forecast.
        algorithm: Makes the algorithm of the settings of the small part.
        evaluation_seeds: Pictures of each held-out prompt.
        listener: Hears the events of the try.
        check_cancel: Raises to stop.
        limit: Samples that fit into memory at once; it may be smaller afterwards.

    Raises:
        ValueError: The training would be refused, or waits for a person.
        NothingScored: The reward scores no picture.
        SelfTestFailed: The training would stop before its first update.
        NothingFits: Memory ran out with a single sample.
    """
    check_held_out(held_out)
    check_needless(reward, config)
    if asks(reward):
        raise ValueError(
            "the reward votes waits for your clicks, so that nobody can say how long the training "
            "takes; check it with another reward in the place of votes"
        )
    limit = limit or BatchLimit(size=config.batch_size)
    small = small_config(config)
    making, adapter = algorithm(small), trained_adapter(policy)
    _reset_peak(policy.device)
    measured = HeldOut(
        policy=policy,
        reward=reward,
        prompts=held_out[:_PROMPTS],
        config=small,
        seeds=evaluation_seeds,
        sampler=making.sampler,
        limit=limit,
        listener=listener,
        check_cancel=check_cancel,
        processes=Processes(),
    )
    weights = adapter.state_dict()
    try:
        began = time.perf_counter()
        _ = measured.before
        cold = time.perf_counter() - began
        with TemporaryDirectory(prefix="chunk-grpo-check-") as place:
            shown = derived(LatestGroup(Path(place)))

            def timed(part: TrainConfig, making: Algorithm[Any, Any], seconds: float) -> _Clock:
                clock = _Clock()
                trainer = Trainer(
                    policy,
                    reward,
                    prompts,
                    part,
                    algorithm=making,
                    listener=broadcast(shown, listener, clock),
                    check_cancel=check_cancel,
                    limit=limit,
                )
                trainer.train(lambda done: done > 0 and clock.running >= seconds)
                clock.tests = trainer.self_tests
                return clock

            clock = timed(small, making, 0.0)
            tests, rows = clock.tests, clock.rows
            seconds = iteration_seconds(
                clock.timed,
                config,
                small,
                remembers_old=torch.device(policy.device).type == "cpu",
                mixes_times=policy.mixes_times,
            )
            if seconds <= _SHORT:
                whole = replace(whole_config(config), self_test=False)
                clock = timed(whole, algorithm(whole), _ENOUGH)
                # The first one is slower: memory is taken and files are made.
                later = clock.timed[1:] or clock.timed
                rows, seconds = clock.rows, fmean(part.seconds for part in later)
        began = time.perf_counter()
        measured.measure("after")
        warm = time.perf_counter() - began
    finally:
        adapter.load_state_dict(weights)
    per_prompts = len(held_out) / min(_PROMPTS, len(held_out))
    batch = min(config.batch_size or config.group_size, config.group_size)
    is_scored = config.algorithm != "preference"  # otherwise rows hold answers
    means, spreads = (
        [row[name] for row in rows if is_scored and row["reward_mean"] is not None]
        for name in ("reward_mean", "reward_std")
    )
    free, memory = _memory(policy.device)
    return Check(
        iterations=config.iterations,
        pictures=config.prompts_per_iteration * config.group_size,
        seconds_per_iteration=seconds,
        measurements=2 + _measured_between(config),
        seconds_per_measurement=warm * per_prompts,
        seconds_once=tests.seconds + max(0.0, cold - warm),
        self_test=tests.result,
        reward=reward.name if is_scored else "",
        reward_mean=sum(means) / len(means) if means else None,
        reward_spread=sum(spreads) / len(spreads) if spreads else None,
        unscored=sum(row["masked_scores"] for row in rows),
        tried=sum(row["tried"] for row in rows),
        batch_size=batch,
        fitting=min(limit.size or batch, batch),
        peak_gib=largest([row["peak_memory_gib"] for row in rows]),
        memory_gib=memory,
        free_gib=free,
    )


class _Clock:
    """A listener that times iterations."""

    tests: SelfTests

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._ends: list[float] = []
        self._pictures = 0

    @property
    def running(self) -> float:
        """Seconds since training began."""
        return time.perf_counter() - self._ends[0]

    def __call__(self, event: Event) -> None:
        if isinstance(event, RolloutEnd):
            self._pictures += len(event.rewards)
        if isinstance(event, IterationEnd):
            self.rows.append({**event.metrics, "tried": self._pictures})
            self._pictures = 0
        if isinstance(event, (RunStart, IterationEnd)):
            self._ends.append(time.perf_counter())

    @property
    def timed(self) -> list[Timed]:
        """What iterations took without the self-test, which the first one has."""
        each = []
        starts = zip(self.rows, self._ends[:-1], self._ends[1:], strict=True)
        for number, (row, start, end) in enumerate(starts):
            of_test = 0.0 if number else self.tests.seconds
            update = max(row["seconds"]["update"] - of_test, 0.0)
            each.append(
                Timed(seconds=end - start - of_test, update=update, trained=row["trained_passes"])
            )
        return each


def _measured_between(config: TrainConfig) -> int:
    """Measurements on the way."""
    return (config.iterations - 1) // config.evaluate_every if config.evaluate_every else 0


def _reset_peak(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _memory(device: torch.device | str) -> tuple[float | None, float | None]:
    """Free memory and all memory of a CUDA device, GiB."""
    if torch.device(device).type != "cuda":
        return None, None
    free, total = torch.cuda.mem_get_info(device)
    return free / 2**30, total / 2**30
