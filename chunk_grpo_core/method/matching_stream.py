"""Gradient of the forward form, one micro-batch at a time.

Every sample-time has a loss of its own (:func:`~.matching.matching_loss`), so that nothing but one
micro-batch is ever held for backward, whatever the group and the number of times. What the loss
compares with (old policy, reference) is measured before the first update, in the same batches, so
that on the CPU the first update sees v = v_old to the last bit.

A model that takes one time for all samples gets sample-times of one level in a call.

Legend: G samples in a group, K times, B sample-times in a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..prompts.example import Example
from .matching import (
    ForwardConfig,
    MatchingTerms,
    clipped_advantages,
    matching_loss,
    matching_terms,
)
from .matching_times import NoisedTimes, matching_error, time_weights
from .micro_batches import SMALLEST_BATCH, MicroBatch
from .stream import Stream

__all__ = [
    "MatchingMeasurement",
    "MatchingTask",
    "accumulate_matching",
    "all_velocities",
    "matching_batches",
    "velocity_of",
    "with_old_policy",
    "with_reference_velocity",
]


@dataclass(frozen=True)
class MatchingTask:
    """One group, scored and compared: all that the forward form trains on."""

    example: Example
    x_0: Tensor
    """Finished latents, CPU float32, shape (G, *latent)."""
    noised: NoisedTimes
    advantages: Tensor
    """A_i, CPU float32, shape (G,). A sample without one goes through nothing."""
    weight: float = 1.0
    """Part of its group that these samples are."""
    x_1: Tensor | None = None
    """Where the samples started, CPU float32, shape (G, *latent), if they are drawn again."""
    seeds: Sequence[int] = ()
    """Of their steps."""
    number: int = 0
    """Of the group in its iteration, which says which update trains it."""
    old: Tensor | None = None
    """Velocities of the policy that sampled, CPU, shape (K, G, *latent)."""
    reference: Tensor | None = None
    """Velocities without the adapter, CPU, shape (K, G, *latent)."""


@dataclass(frozen=True)
class MatchingMeasurement:
    """Sums over the sample-times that went through backward, and over samples with a ratio."""

    passes: int = 0
    error: float = 0.0
    gap: float = 0.0
    norm: float = 0.0
    move: float = 0.0
    ratios: int = 0
    """Samples of later updates that have a ratio (``elbo``)."""
    clipped: int = 0
    """Those of them that the clip holds back."""
    first_error: float | None = None
    """Largest |v - v_old|, relative to |v|, of first updates that measured v_old; 0 on the CPU."""

    def __add__(self, other: MatchingMeasurement) -> MatchingMeasurement:
        errors = [e for e in (self.first_error, other.first_error) if e is not None]
        return MatchingMeasurement(
            self.passes + other.passes,
            self.error + other.error,
            self.gap + other.gap,
            self.norm + other.norm,
            self.move + other.move,
            self.ratios + other.ratios,
            self.clipped + other.clipped,
            max(errors) if errors else None,
        )


def matching_batches(
    task: MatchingTask, stream: Stream, *, together: int = 1
) -> Iterator[MicroBatch]:
    """Micro-batches of all sample-times that have an advantage, high noise first; their ``steps``
    are numbers of times.

    Args:
        task: The group.
        stream: Its batches.
        together: So many neighbours in that order, which fit into a batch, are not separated.
    """
    size = stream.batch_size or len(task.x_0)
    t = task.noised.t
    needed = (task.advantages != 0).expand(len(t), -1)
    order = t.flatten().argsort(descending=True, stable=True)
    rows = torch.stack([order // t.shape[1], order % t.shape[1]], dim=1)
    rows = rows[needed[rows[:, 0], rows[:, 1]]]
    if not len(rows):
        return
    if stream.mixes_times:
        parts: list[Tensor] = [rows]
    else:
        counts = t[rows[:, 0], rows[:, 1]].unique_consecutive(return_counts=True)[1]
        parts = list(rows.split(counts.tolist()))
    for part in parts:
        units = part.view(-1, together, 2)
        for batch in units.tensor_split(-(-len(units) // (size // together))):
            yield MicroBatch.of(batch.flatten(0, 1), min(SMALLEST_BATCH, size, len(task.x_0)))


def velocity_of(stream: Stream, task: MatchingTask, batch: MicroBatch) -> Tensor:
    """v at the sample-times of a micro-batch, float32, shape (B, *latent), on the device."""
    x_t = task.noised.noised(task.x_0, batch.steps, batch.samples).to(stream.device)
    t = task.noised.t[batch.steps, batch.samples]
    time = t.to(stream.device) if stream.mixes_times and len(t.unique()) > 1 else float(t[0])
    return stream.velocity(x_t, time, task.example).float()


def all_velocities(stream: Stream, task: MatchingTask) -> Tensor:
    """v at all sample-times that are needed, CPU, shape (K, G, *latent); 0 at the others."""
    velocities = torch.zeros_like(task.noised.eps)
    for batch in matching_batches(task, stream):
        velocities[batch.steps, batch.samples] = velocity_of(stream, task, batch).cpu()
        stream.check_cancel()
    return velocities


def with_old_policy(stream: Stream, task: MatchingTask, *, with_gradients: bool) -> MatchingTask:
    """Measure the policy that sampled, before the first update.

    Args:
        stream: The model, with the weights that sampled, and the batches of the updates.
        task: The group.
        with_gradients: Call the model with gradients enabled, though none is computed: compiled
            blocks may have other last bits without.
    """
    with torch.set_grad_enabled(with_gradients):
        return replace(task, old=all_velocities(stream, task).detach())


@torch.no_grad()
def with_reference_velocity(stream: Stream, task: MatchingTask) -> MatchingTask:
    """Measure the reference once for all updates of a rollout; the adapter must be **off**."""
    return replace(task, reference=all_velocities(stream, task))


def accumulate_matching(
    stream: Stream, task: MatchingTask, config: ForwardConfig, *, scale: float, is_on_policy: bool
) -> MatchingMeasurement:
    """Add the gradient of ``scale * loss`` to the adapter's parameters.

    Args:
        stream: The model, adapter on.
        task: As prepared; without ``old``, the old policy is taken to be the present one.
        config: The objective.
        scale: Weight of this group in the update (1 / groups); ``task.weight`` comes on top.
        is_on_policy: The policy is the one that sampled.
    """
    if config.needs_old and not is_on_policy and task.old is None:
        raise ValueError(
            f"forward.objective {config.objective} compares later updates with the policy that "
            "sampled; call with_old_policy before the first"
        )
    advantages, measured = task.advantages, MatchingMeasurement()
    if config.objective == "elbo" and not is_on_policy:
        advantages, measured = _elbo_advantages(stream, task, config)
    share = scale * task.weight / task.noised.t.numel()
    for batch in matching_batches(task, stream):
        measured += _backward(stream, replace(task, advantages=advantages), batch, config, share)
        stream.check_cancel()
    is_first = is_on_policy and task.old is not None
    return measured if is_first else replace(measured, first_error=None)


@torch.enable_grad()
def _backward(
    stream: Stream, task: MatchingTask, batch: MicroBatch, config: ForwardConfig, share: float
) -> MatchingMeasurement:
    """Add the gradient of one micro-batch, each row of which counts ``share``."""
    counted = slice(batch.count)
    times, samples = batch.steps[counted], batch.samples[counted]
    v_t = velocity_of(stream, task, batch)[counted]
    target = task.noised.target(task.x_0, times, samples).to(v_t.device)
    old, reference = (
        None if velocities is None else velocities[times, samples].to(v_t.device)
        for velocities in (task.old, task.reference)
    )
    terms = matching_terms(v_t, target, old, reference, config)
    t, a = task.noised.t[times, samples], task.advantages[samples]
    loss = matching_loss(terms, t.to(v_t.device), a.to(v_t.device), config)
    (share * loss.sum()).backward()
    return _measured(MatchingTerms(*(term.detach() for term in terms)), v_t.detach())


def _measured(terms: MatchingTerms, v_t: Tensor) -> MatchingMeasurement:
    """Sums of a micro-batch, in one transfer from the device."""
    size = v_t.square().flatten(1).mean(1)
    farthest = (terms.move / size.clamp_min(1e-12)).max().sqrt()
    sums = torch.stack([*(term.sum() for term in terms), farthest]).tolist()
    error, move, gap, norm, first_error = sums
    return MatchingMeasurement(
        passes=len(v_t), error=error, move=move, gap=gap, norm=norm, first_error=first_error
    )


@torch.no_grad()
def _elbo_advantages(
    stream: Stream, task: MatchingTask, config: ForwardConfig
) -> tuple[Tensor, MatchingMeasurement]:
    """[r A] of every sample under the present policy."""
    assert task.old is not None
    log_ratio = torch.zeros_like(task.advantages)
    for batch in matching_batches(task, stream):
        v_t = velocity_of(stream, task, batch).cpu()
        counted = slice(batch.count)
        times, samples = batch.steps[counted], batch.samples[counted]
        target = task.noised.target(task.x_0, times, samples)
        old = matching_error(task.old[times, samples], target)
        new = matching_error(v_t[counted], target)
        weights = time_weights(config, task.noised.t[times, samples], old)
        log_ratio.index_add_(0, samples, weights * (old - new) / len(task.noised.t))
        stream.check_cancel()
    advantages = clipped_advantages(task.advantages, log_ratio, config.clip)
    has_ratio = task.advantages != 0
    held = has_ratio & (advantages == 0)
    return advantages, MatchingMeasurement(ratios=int(has_ratio.sum()), clipped=int(held.sum()))
