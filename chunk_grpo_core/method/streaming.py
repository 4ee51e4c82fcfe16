"""Gradient of the chunk objective, one micro-batch at a time.

The loss of a group depends on the network only through a few numbers for each sample i and step t
(log p, KL to the old policy, distance to the reference: ``objective.StepTerms``), so

    dloss/dtheta = sum over i, t and terms of  c[i, t] * dterm[i, t]/dtheta,
    c = dloss/dterm  (small matrices, from autograd on the pure function in objective.py).

Therefore only one micro-batch is ever held for backward, whatever the chunk length, and the
gradient is still exactly that of the whole objective. Two passes are needed where the terms are not
known (first without gradients, then backward); one is enough right after a rollout, where the ratio
is 1 by construction and c is known in advance, and for what shares a ratio and fits into a
micro-batch whole (``method/micro_batches.py``).

Legend: G samples in a group, K chunks, N steps, B sample-steps in a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .chunk_statistics import ChunkStatistics, chunk_statistics
from .group_task import GroupTask, Reference
from .micro_batches import MicroBatch, step_batches
from .objective import ObjectiveConfig, StepTerms, group_loss
from .replay import Replay, replay_steps
from .stream import Stream

__all__ = ["accumulate_group", "coefficients", "recompute_old_policy", "with_reference"]


def coefficients(loss: Callable[[StepTerms], Tensor], terms: StepTerms) -> StepTerms:
    """dloss/dterm at the given terms, each of shape (G, N - 1); 0 where nothing is trained."""
    with torch.enable_grad():
        leaves = StepTerms(*(term.detach().clone().requires_grad_(True) for term in terms))
        gradients = torch.autograd.grad(loss(leaves), list(leaves), allow_unused=True)
    return StepTerms(
        *(torch.zeros_like(t) if g is None else g for t, g in zip(terms, gradients, strict=True))
    )


def _terms_of(
    new: Replay, task: GroupTask, step: int, part: Tensor, config: ObjectiveConfig
) -> StepTerms:
    """The terms of one micro-batch, each of shape (B,); those that nobody asked for are 0."""
    kl_old = gap = torch.zeros_like(new.log_p)
    if config.needs_old_mean:
        if task.trajectory.means is None:
            raise ValueError(
                "the rollout kept no means; ratio_norm, kl-mask and kl_old need "
                "rollout(keep_means=True)"
            )
        old = task.trajectory.means[step][part].to(new.v_t.device)
        kl_old = 0.5 * ((new.transition.mean - old) / new.transition.std).square().flatten(1).mean(
            1
        )
    if config.kl_ref:
        if task.reference is None:
            raise ValueError("objective.kl_ref needs the reference policy; call with_reference")
        reference = task.reference.v_t[step][part].to(new.v_t.device)
        gap = (new.v_t.float() - reference).square().flatten(1).mean(1)
    return StepTerms(new.log_p, kl_old, gap)


def _on_policy_terms(task: GroupTask) -> StepTerms:
    """The terms right after a rollout. The gap to the reference is not known yet, but it enters
    the loss linearly, so that its coefficient is."""
    log_p = task.trajectory.log_p.T.clone()
    return StepTerms(log_p, torch.zeros_like(log_p), torch.zeros_like(log_p))


def _terms_of_batch(
    stream: Stream, task: GroupTask, batch: MicroBatch, config: ObjectiveConfig
) -> StepTerms:
    """The terms of one micro-batch, each of shape (B,)."""
    rows = [
        _terms_of(new, task, step, samples, config)
        for step, samples, new in replay_steps(
            stream.velocity, task.trajectory, batch.steps, batch.samples, stream.device
        )
    ]
    return StepTerms(*(torch.cat(term) for term in zip(*rows, strict=True)))


def _store(all_terms: StepTerms, batch: MicroBatch, terms: StepTerms) -> None:
    for target, values in zip(all_terms, terms, strict=True):
        target[batch.samples, batch.steps] = values.detach().cpu()


def _replays(
    stream: Stream, task: GroupTask, config: ObjectiveConfig
) -> Iterator[tuple[int, Tensor, Replay]]:
    """Step, samples and replay of all that is needed of a group; nothing is held for backward."""
    for batch in task.all_batches(config, stream):
        replays = [
            (step, samples, new.detached)
            for step, samples, new in replay_steps(
                stream.velocity, task.trajectory, batch.steps, batch.samples, stream.device
            )
        ]
        yield from replays
        stream.check_cancel()


def recompute_old_policy(
    stream: Stream, task: GroupTask, config: ObjectiveConfig, *, with_gradients: bool = False
) -> GroupTask:
    """Replace the old log-densities (and means) by ones with the batch shapes of training.

    Kernels may give other last bits for another batch shape, and compiled blocks for calls without
    gradients; with a clip range of 5e-5 that would count as a change of policy. Call it before the
    first update of a rollout.

    Args:
        stream: The model that sampled, adapter on.
        task: The group.
        config: Which steps are needed.
        with_gradients: Call the model with gradients enabled, though none is computed.
    """
    trajectory = task.trajectory
    log_p = trajectory.log_p.clone()
    means = None if trajectory.means is None else trajectory.means.clone()
    with torch.set_grad_enabled(with_gradients):
        for step, samples, old in _replays(stream, task, config):
            log_p[step, samples] = old.log_p.cpu()
            if means is not None:
                means[step, samples] = old.transition.mean.cpu()
    return replace(task, trajectory=replace(trajectory, log_p=log_p, means=means))


@torch.no_grad()
def with_reference(stream: Stream, task: GroupTask, config: ObjectiveConfig) -> GroupTask:
    """Measure the reference once for all updates of a rollout.

    Args:
        stream: The model with its adapter **off**.
        task: The group.
        config: Which steps are needed.
    """
    trajectory = task.trajectory
    v_t = torch.zeros_like(trajectory.states[: task.plan.steps])
    for step, samples, reference in _replays(stream, task, config):
        v_t[step, samples] = reference.v_t.float().cpu()
    return replace(task, reference=Reference(v_t))


def accumulate_group(
    stream: Stream, task: GroupTask, config: ObjectiveConfig, *, scale: float, is_on_policy: bool
) -> tuple[ChunkStatistics, int]:
    """Add the gradient of ``scale * loss`` to the adapter's parameters.

    Args:
        stream: The model, adapter on.
        task: Trajectory, advantages, drawn chunks.
        config: The objective.
        scale: Weight of this group in the update (1 / groups); ``task.weight`` comes on top.
        is_on_policy: The policy is the one that sampled the trajectory, so every ratio is 1.

    Returns:
        Statistics of the ratios as measured, and the number of sample-steps that went through
        backward with a gradient.
    """
    facts, terms = task.facts(), _on_policy_terms(task)
    # At the policy that sampled, the KL to it has no gradient.
    needed = replace(config, kl_old=0.0) if is_on_policy else config
    whole, rest = task.batches(needed, stream)

    def weights_of_terms() -> StepTerms:
        per_term = coefficients(lambda leaves: group_loss(leaves, facts, config), terms)
        return StepTerms(*(c * (scale * task.weight) for c in per_term))

    if not is_on_policy:
        with torch.no_grad():
            for batch in _step_batches(rest, stream):
                _store(terms, batch, _terms_of_batch(stream, task, batch, config))
                stream.check_cancel()
    weights = weights_of_terms()
    rest = rest & torch.stack([weight != 0 for weight in weights]).any(0)
    still_unknown = [] if is_on_policy else list(map(id, whole))
    passes = 0
    with torch.enable_grad():
        for batch in _in_order([*whole, *_step_batches(rest, stream)]):
            of_batch = _terms_of_batch(stream, task, batch, config)
            _store(terms, batch, of_batch)
            if id(batch) in still_unknown:  # a whole unit: now all that its weights depend on is
                passes += _backward(of_batch, weights_of_terms(), batch)
            else:
                passes += _backward(of_batch, weights, batch)
            stream.check_cancel()
    counted, dimensions = task.trained_chunks(needed), task.trajectory.states[0, 0].numel()
    return chunk_statistics(terms, facts, counted, config, dimensions), passes


def _step_batches(needed: Tensor, stream: Stream) -> Iterator[MicroBatch]:
    return step_batches(needed, stream.batch_size, mixes_times=stream.mixes_times)


def _in_order(batches: Iterable[MicroBatch]) -> list[MicroBatch]:
    """Early steps first."""
    return sorted(batches, key=lambda batch: int(batch.steps[0]))


def _backward(terms: StepTerms, weights: StepTerms, batch: MicroBatch) -> int:
    """Add the gradient of one micro-batch; returns how many sample-steps have one."""
    counted = slice(batch.count)
    samples, steps = batch.samples[counted], batch.steps[counted]
    of_batch = [weight[samples, steps] for weight in weights]
    has_gradient = torch.stack([weight != 0 for weight in of_batch]).any(0)
    if has_gradient.any():
        sums = [
            (weight.to(value.device) * value[counted]).sum()
            for weight, value in zip(of_batch, terms, strict=True)
            if value.requires_grad
        ]
        torch.stack(sums).sum().backward()
    return int(has_gradient.sum())
