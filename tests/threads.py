"""Processes that are threads, for trainings that several share.

A training among them is compared with that of one.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier

import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy

from chunk_grpo_core.method.reward import RewardFailed
from chunk_grpo_core.processes.collective import Processes
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.train.events import IterationEnd, RolloutEnd
from chunk_grpo_core.train.trainer import Trainer


class Meeting:
    """Where threads exchange values."""

    def __init__(self, count):
        self.barrier, self.values = Barrier(count, timeout=30), [None] * count

    def exchange(self, rank, value):
        self.values[rank] = value
        self.barrier.wait()
        found = deepcopy(self.values)  # nothing is shared between processes
        self.barrier.wait()
        return found


class Threads(Processes):
    """What :class:`Processes` promises, for threads of one process."""

    def __init__(self, rank, meeting, split_groups=False):
        super().__init__(split_groups=split_groups)
        self.rank, self.count, self._meeting = rank, len(meeting.values), meeting

    def gather(self, value):
        return self._meeting.exchange(self.rank, value)

    def from_writer(self, work):
        return self.gather(work() if self.is_writer else None)[0]

    def sum_gradients(self, parameters):
        mine = [None if p.grad is None else p.grad.clone() for p in parameters]
        for parameter, found in zip(parameters, zip(*self.gather(mine), strict=True), strict=True):
            known = [gradient for gradient in found if gradient is not None]
            parameter.grad = sum(known) if known else None

    def copy_from_writer(self, parameters):
        values = self.gather([p.detach().clone() for p in parameters])[0]
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)


def together(count, work, **options):
    """Call ``work(processes)`` in as many threads."""
    meeting = Meeting(count)
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, Threads(rank, meeting, **options)) for rank in range(count)]
        return [future.result(timeout=60) for future in futures]


def train(config, reward=None, processes=None):
    """Rows of metrics without times, the adapter, and the prompts of the groups heard of."""
    policy, rows, heard = ToyPolicy(), [], []

    def listen(event):
        if isinstance(event, IterationEnd):
            rows.append({k: v for k, v in event.metrics.items() if k != "seconds"})
        if isinstance(event, RolloutEnd):
            heard.append(event.example)

    Trainer(
        policy, reward or Brightness(), PROMPTS, config, listener=listen, processes=processes
    ).train()
    return rows, policy.adapter.state_dict(), heard


def numbers(value):
    """Every number of a row, in order; nan where there is none."""
    if isinstance(value, dict):
        return [n for key in sorted(value) for n in numbers(value[key])]
    if isinstance(value, (list, tuple)):
        return [n for item in value for n in numbers(item)]
    return [math.nan if value is None else value]


def same_training(one, other):
    """Equal but for the order in which numbers were added."""
    (rows, adapter, _), (other_rows, other_adapter, _) = one, other
    assert len(rows) == len(other_rows) > 0
    for row, other_row in zip(rows, other_rows, strict=True):
        assert row.keys() == other_row.keys()
        assert numbers(row) == pytest.approx(numbers(other_row), rel=1e-5, abs=1e-5, nan_ok=True)
    for name, factor in adapter.items():
        torch.testing.assert_close(factor, other_adapter[name], rtol=0, atol=1e-5)


class Unreachable(Brightness):
    """Cannot score one prompt."""

    def score(self, images, examples):
        if Example.of(examples[0]).text == PROMPTS[1]:
            raise RewardFailed("no answer")
        return super().score(images, examples)
