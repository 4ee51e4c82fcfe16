"""The port of an algorithm: what the loop asks of it, in the order of the questions.

An algorithm is made from a TrainConfig, refuses settings that do not suit it, and never changes:
what it draws depends on seed, iteration and group alone, so that nothing of it stands in a
checkpoint.
Phases, memory, optimiser steps, several processes, masked scores, events and files are the loop's.

Legend: G samples in a group (or of the part of one that a process works on).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from ..method.noise import Noise
from ..method.policy import Policy
from ..method.rollout import Trajectory
from ..method.sampler import Sampler
from ..method.stream import Stream
from ..prompts.example import Example

__all__ = ["Algorithm", "GroupRequest", "SampledGroup"]


@dataclass(frozen=True, kw_only=True)
class GroupRequest:
    """A group, or the part of one, that is to be sampled."""

    iteration: int
    """0-based."""
    number: int
    """Number of the group in the iteration, 0-based."""
    samples: slice
    """Which samples of the whole group."""
    example: Example
    """What its samples show."""
    noise: Noise
    """Initial noise and that of the steps; also fixes G."""
    latent_shape: tuple[int, ...]


@dataclass(frozen=True)
class SampledGroup:
    """The answer to a request."""

    request: GroupRequest
    trajectory: Trajectory
    """``x_0`` is what is decoded and scored."""


Task = TypeVar("Task")
"""A scored group as an algorithm trains on it; the loop only hands it back."""
Measured = TypeVar("Measured")
"""What an algorithm notes of the gradients of its tasks. ``+`` joins what two of them have noted,
whatever tasks, updates or processes they are of; it is pickled between processes."""


class Algorithm(Protocol[Task, Measured]):
    """See :mod:`.chunk_grpo` for the first one."""

    @property
    def old_decay(self) -> float | None:
        """Of the average of weights that samples, the part that each iteration keeps
        (``train/old_policy.py``); None if the newest weights sample."""
        ...

    @property
    def sampler(self) -> Sampler | None:
        """Who makes the pictures that are trained on; the same measures the gain. None is the
        library's own walk, and Euler steps without noise where the gain is measured."""
        ...

    def doubts(self, model: str) -> list[str]:
        """Say, in sentences, what of the settings is allowed but does not fit together.

        Args:
            model: Name of the model that trains.
        """
        ...

    def sample(self, stream: Stream, request: GroupRequest) -> Trajectory:
        """Roll out a group with whatever sampler the algorithm needs, without gradients.

        Args:
            stream: The model, adapter on.
            request: Prompt, noise and size.
        """
        ...

    def recorded(self, stream: Stream, group: SampledGroup) -> Trajectory:
        """What the self-test replays where no group has noise: a trajectory with noisy steps, if
        there is one. It is asked for as few groups as are replayed.

        Args:
            stream: The model that sampled, adapter on.
            group: As sampled.
        """
        ...

    def task(self, group: SampledGroup, advantages: Tensor, weight: float) -> Task:
        """Make a group ready to be trained on.

        Args:
            group: As sampled.
            advantages: A_i, CPU float32, shape (G,); 0 where a sample has no score.
            weight: Part of its group that these samples are, in (0, 1].
        """
        ...

    def prepare(self, stream: Stream, task: Task, policy: Policy) -> Task:
        """Measure what the updates compare with, before the first of them moves the policy.

        It may be asked again, with smaller batches, after memory ran out.

        Args:
            stream: The model, with the weights that sampled, and the batches of the updates.
            task: The group.
            policy: For its adapter, which can be switched off meanwhile.
        """
        ...

    def gradient(self, stream: Stream, task: Task, *, scale: float, update: int) -> Measured:
        """Add the gradient of ``scale * loss`` to the adapter's parameters.

        No more than ``stream.batch_size`` samples may be held for backward at a time.

        Args:
            stream: The model, adapter on.
            task: As prepared.
            scale: Weight of its group in the update (1 / groups); the weight of the task comes on
                top.
            update: 0-based number of the update in the iteration. The policy of the first is the
                one that sampled, unless an average sampled.
        """
        ...

    def report(self, measured: Measured, iteration: int) -> Mapping[str, object]:
        """The algorithm's columns of an iteration's row of metrics, JSON-ready.

        Args:
            measured: Of all tasks, updates and processes.
            iteration: 0-based, for warnings.
        """
        ...
