"""Gradient of a preference loss, one micro-batch at a time.

What belongs together (a pair; for ``kto``, whose reference point is a mean, the whole group) goes
through the network together if a micro-batch has room for it. If not, all implicit rewards are
measured first, without gradients: the loss is a function of these few numbers, so that its gradient
is a sum of their own, each with a known factor.

Legend: G pictures in a group, K times, B picture-times in a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .matching_stream import MatchingTask, all_velocities, matching_batches, velocity_of
from .matching_times import matching_error
from .micro_batches import MicroBatch
from .preference import PreferenceConfig, implicit_rewards, preference_losses
from .stream import Stream

__all__ = ["PreferenceMeasurement", "accumulate_preferences"]


@dataclass(frozen=True)
class PreferenceMeasurement:
    """Sums over the picture-times that went through backward, or over the losses of them."""

    passes: int = 0
    error: float = 0.0
    losses: int = 0
    loss: float = 0.0
    right: float = 0.0
    """Losses below their value at the reference, where what was preferred has gained; one that is
    equal counts half."""
    better: int = 0
    """Picture-times of pictures that were preferred or liked."""
    better_reward: float = 0.0
    """Their implicit rewards."""
    worse_reward: float = 0.0
    """Implicit rewards of the others."""

    def __add__(self, other: PreferenceMeasurement) -> PreferenceMeasurement:
        return PreferenceMeasurement(
            self.passes + other.passes,
            self.error + other.error,
            self.losses + other.losses,
            self.loss + other.loss,
            self.right + other.right,
            self.better + other.better,
            self.better_reward + other.better_reward,
            self.worse_reward + other.worse_reward,
        )


@dataclass(frozen=True)
class _Rows:
    """Numbers of some picture-times, on the device, shape (B,)."""

    error: Tensor
    reward: Tensor
    is_better: Tensor


def accumulate_preferences(
    stream: Stream, task: MatchingTask, config: PreferenceConfig, *, scale: float
) -> PreferenceMeasurement:
    """Add the gradient of ``scale * loss`` to the adapter's parameters.

    Args:
        stream: The model, adapter on.
        task: With the velocities of the reference. ``advantages`` are 1 for pictures that were
            preferred or liked and -1 for others; for ``dpo`` 1 and -1 in turn, a pair is two
            neighbours that share levels.
        config: The objective.
        scale: Weight of this group in the update (1 / groups); ``task.weight`` comes on top.
    """
    if task.reference is None:
        raise ValueError("a preference compares with the reference; call with_reference_velocity")
    together = _together(stream, task, config)
    if together is None:
        return _in_two_passes(stream, task, config, scale)
    share, measured = scale * task.weight / _losses(task, config), PreferenceMeasurement()
    for batch in matching_batches(task, stream, together=together):
        with torch.enable_grad():
            rows = _rows(velocity_of(stream, task, batch), task, batch, config)
            losses = preference_losses(rows.reward, rows.is_better, config.objective)
            (share * losses.sum()).backward()
        measured += _measured(rows, losses, config)
        stream.check_cancel()
    return measured


def _in_two_passes(
    stream: Stream, task: MatchingTask, config: PreferenceConfig, scale: float
) -> PreferenceMeasurement:
    shape = task.noised.t.shape
    every = torch.cartesian_prod(torch.arange(shape[0]), torch.arange(shape[1]))
    with torch.no_grad():
        velocities = all_velocities(stream, task)
    everything = MicroBatch.of(every, 0)
    rows = _rows(velocities[everything.steps, everything.samples], task, everything, config)
    rewards = rows.reward.detach().requires_grad_()
    with torch.enable_grad():
        losses = preference_losses(rewards, rows.is_better, config.objective)
        (factors,) = torch.autograd.grad(losses.mean(), rewards)
    factors = scale * task.weight * factors.view(shape)
    for batch in matching_batches(task, stream):
        with torch.enable_grad():
            here = _rows(velocity_of(stream, task, batch), task, batch, config)
            counted = slice(batch.count)
            of_batch = factors[batch.steps[counted], batch.samples[counted]]
            (of_batch.to(here.reward.device) * here.reward).sum().backward()
        stream.check_cancel()
    return _measured(rows, losses, config)


def _together(stream: Stream, task: MatchingTask, config: PreferenceConfig) -> int | None:
    """Picture-times that belong together; None if a micro-batch has no room for them."""
    size = stream.batch_size or len(task.x_0)
    needed = 2 if config.objective == "dpo" else task.noised.t.numel()
    mixes = stream.mixes_times or needed == 2
    return needed if needed <= size and mixes else None


def _losses(task: MatchingTask, config: PreferenceConfig) -> int:
    """How many losses a group has."""
    return task.noised.t.numel() // (2 if config.objective == "dpo" else 1)


def _rows(v_t: Tensor, task: MatchingTask, batch: MicroBatch, config: PreferenceConfig) -> _Rows:
    """Compare the velocities of a micro-batch, shape (B, *latent)."""
    assert task.reference is not None
    counted = slice(batch.count)
    times, samples, v_t = batch.steps[counted], batch.samples[counted], v_t[counted]
    target = task.noised.target(task.x_0, times, samples).to(v_t.device)
    reference = task.reference[times, samples].to(v_t.device)
    error = matching_error(v_t, target)
    t = task.noised.t[times, samples].to(v_t.device)
    rewards = implicit_rewards(error, matching_error(reference, target), t, config)
    return _Rows(error, rewards, (task.advantages[samples] > 0).to(v_t.device))


def _measured(rows: _Rows, losses: Tensor, config: PreferenceConfig) -> PreferenceMeasurement:
    """Sums, in one transfer from the device."""
    at_reference = preference_losses(
        torch.zeros_like(rows.reward), rows.is_better, config.objective
    )
    rewards = rows.reward.detach()
    sums = torch.stack(
        [
            rows.error.detach().sum(),
            losses.detach().sum(),
            (at_reference - losses.detach()).sign().add(1.0).div(2.0).sum(),
            rows.is_better.sum().to(rewards),
            rewards[rows.is_better].sum(),
            rewards[~rows.is_better].sum(),
        ]
    ).tolist()
    error, loss, right, better, better_reward, worse_reward = sums
    return PreferenceMeasurement(
        passes=len(rewards),
        error=error,
        losses=len(losses),
        loss=loss,
        right=right,
        better=round(better),
        better_reward=better_reward,
        worse_reward=worse_reward,
    )
