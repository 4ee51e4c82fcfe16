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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cancel import CheckCancel, never_cancel
from .chunk_statistics import ChunkStatistics, chunk_statistics
from .chunks import ChunkPlan
from .micro_batches import MicroBatch, step_batches, whole_units
from .objective import GroupFacts, ObjectiveConfig, StepTerms, group_loss
from .policy import Velocity
from .replay import Replay, replay_steps
from .rollout import Trajectory

__all__ = [
    "GroupTask",
    "Reference",
    "accumulate_group",
    "coefficients",
    "recompute_old_policy",
    "with_reference",
]


@dataclass(frozen=True)
class Reference:
    """What the reference policy (adapter off) says about a recorded group, on the CPU."""

    v_t: Tensor
    """Velocities, shape (N - 1, G, *latent); only the steps that are trained are filled in."""
    log_p: Tensor
    """Log-densities, shape (G, N - 1)."""


@dataclass(frozen=True)
class GroupTask:
    """One group, ready to be trained on."""

    trajectory: Trajectory
    advantages: Tensor
    """A_i, CPU float32, shape (G,)."""
    drawn: Tensor
    """Bool, shape (G, K): the chunks each sample trains on."""
    reference: Reference | None = None
    """See :func:`with_reference`."""
    weight: float = 1.0
    """Part of its group that these samples are."""

    def trained_chunks(self, config: ObjectiveConfig) -> Tensor:
        """The drawn chunks of samples that have a gradient at all, bool, shape (G, K)."""
        has_gradient = (self.advantages != 0) | config.has_penalty
        return self.drawn & has_gradient[:, None]

    def needed_steps(self, plan: ChunkPlan, config: ObjectiveConfig) -> Tensor:
        """The sample-steps inside those chunks, bool, shape (G, N - 1)."""
        return plan.spread(self.trained_chunks(config))

    def all_batches(
        self, plan: ChunkPlan, config: ObjectiveConfig, size: int | None, *, mixes_times: bool
    ) -> list[MicroBatch]:
        """Micro-batches of all sample-steps that are needed."""
        whole, rest = self.batches(plan, config, size, mixes_times=mixes_times)
        return [*whole, *step_batches(rest, size, mixes_times=mixes_times)]

    def batches(
        self, plan: ChunkPlan, config: ObjectiveConfig, size: int | None, *, mixes_times: bool
    ) -> tuple[list[MicroBatch], Tensor]:
        """Micro-batches of what shares a ratio and fits into one whole, and the sample-steps that
        are left, bool, shape (G, N - 1)."""
        if config.ratio == "step":
            steps = [(step, step + 1) for step in range(plan.steps)]
            needed = self.needed_steps(plan, config)
            return whole_units(needed, steps, size, mixes_times=mixes_times)
        trained = self.trained_chunks(config)
        whole, rest = whole_units(trained, plan.bounds(), size, mixes_times=mixes_times)
        return whole, plan.spread(rest)

    def facts(self, plan: ChunkPlan) -> GroupFacts:
        """The part of it that the objective knows."""
        pairs = self.trajectory.grid.pairs()[:-1]
        return GroupFacts(
            plan=plan,
            advantages=self.advantages,
            drawn=self.drawn,
            old_log_p=self.trajectory.log_p.T,
            std=torch.tensor([self.trajectory.sde.std(t, s) for t, s in pairs]),
            dt=torch.tensor([s - t for t, s in pairs]),
            reference_log_p=self.reference.log_p if self.reference else None,
        )


def coefficients(terms: StepTerms, facts: GroupFacts, config: ObjectiveConfig) -> StepTerms:
    """dloss/dterm at the given terms, each of shape (G, N - 1); 0 where nothing is trained."""
    with torch.enable_grad():
        leaves = StepTerms(*(term.detach().clone().requires_grad_(True) for term in terms))
        gradients = torch.autograd.grad(
            group_loss(leaves, facts, config), list(leaves), allow_unused=True
        )
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
                "the rollout kept no means; ratio_norm and kl-mask need rollout(keep_means=True)"
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
    """The terms right after a rollout. The distance to the reference is not known yet, but it
    enters the loss linearly, so that its coefficient is."""
    log_p = task.trajectory.log_p.T.clone()
    return StepTerms(log_p, torch.zeros_like(log_p), torch.zeros_like(log_p))


def _terms_of_batch(
    velocity: Velocity,
    task: GroupTask,
    batch: MicroBatch,
    config: ObjectiveConfig,
    device: torch.device | str,
) -> StepTerms:
    """The terms of one micro-batch, each of shape (B,)."""
    parts = [
        _terms_of(new, task, step, samples, config)
        for step, samples, new in replay_steps(
            velocity, task.trajectory, batch.steps, batch.samples, device
        )
    ]
    return StepTerms(*(torch.cat(term) for term in zip(*parts, strict=True)))


def _store(all_terms: StepTerms, batch: MicroBatch, terms: StepTerms) -> None:
    for target, values in zip(all_terms, terms, strict=True):
        target[batch.samples, batch.steps] = values.detach().cpu()


def _replays(
    velocity: Velocity,
    task: GroupTask,
    batches: Iterable[MicroBatch],
    device: torch.device | str,
    check_cancel: CheckCancel,
) -> Iterator[tuple[int, Tensor, Replay]]:
    """Step, samples and replay of all micro-batches; none is held for backward."""
    for batch in batches:
        found = replay_steps(velocity, task.trajectory, batch.steps, batch.samples, device)
        found = [(step, samples, new.detached) for step, samples, new in found]
        yield from found
        check_cancel()


def recompute_old_policy(
    velocity: Velocity,
    task: GroupTask,
    plan: ChunkPlan,
    config: ObjectiveConfig,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    mixes_times: bool = False,
    with_gradients: bool = False,
    check_cancel: CheckCancel = never_cancel,
) -> GroupTask:
    """Replace the old log-densities (and means) by ones with the batch shapes of training.

    Kernels may give other last bits for another batch shape, and compiled blocks for calls without
    gradients; with a clip range of 5e-5 that would count as a change of policy. Call it before the
    first update of a rollout.

    Args:
        velocity: The model that sampled, adapter on.
        task: The group.
        plan: K chunks.
        config: Which steps are needed.
        device: Where the model wants its input.
        batch_size: Sample-steps in one call of the model; as many as there are samples when None.
        mixes_times: The model takes a time for each sample.
        with_gradients: Call the model with gradients enabled, though none is computed.
        check_cancel: Called after every call of the model.
    """
    trajectory = task.trajectory
    log_p = trajectory.log_p.clone()
    means = None if trajectory.means is None else trajectory.means.clone()
    batches = task.all_batches(plan, config, batch_size, mixes_times=mixes_times)
    with torch.set_grad_enabled(with_gradients):
        for step, samples, old in _replays(velocity, task, batches, device, check_cancel):
            log_p[step, samples] = old.log_p.cpu()
            if means is not None:
                means[step, samples] = old.transition.mean.cpu()
    return replace(task, trajectory=replace(trajectory, log_p=log_p, means=means))


@torch.no_grad()
def with_reference(
    velocity: Velocity,
    task: GroupTask,
    plan: ChunkPlan,
    config: ObjectiveConfig,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    mixes_times: bool = False,
    check_cancel: CheckCancel = never_cancel,
) -> GroupTask:
    """Measure the reference once for all updates of a rollout.

    Args:
        velocity: The model with its adapter **off**.
        task: The group.
        plan: K chunks.
        config: Which steps are needed.
        device: Where the model wants its input.
        batch_size: Sample-steps in one call of the model; as many as there are samples when None.
        mixes_times: The model takes a time for each sample.
        check_cancel: Called after every call of the model.
    """
    trajectory = task.trajectory
    v_t = torch.zeros_like(trajectory.states[: plan.steps])
    log_p = trajectory.log_p.T.clone()
    batches = task.all_batches(plan, config, batch_size, mixes_times=mixes_times)
    for step, samples, reference in _replays(velocity, task, batches, device, check_cancel):
        v_t[step, samples] = reference.v_t.float().cpu()
        log_p[samples, step] = reference.log_p.cpu()
    return replace(task, reference=Reference(v_t, log_p))


def accumulate_group(
    velocity: Velocity,
    task: GroupTask,
    plan: ChunkPlan,
    config: ObjectiveConfig,
    *,
    scale: float,
    is_on_policy: bool,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    mixes_times: bool = False,
    check_cancel: CheckCancel = never_cancel,
) -> tuple[ChunkStatistics, int]:
    """Add the gradient of ``scale * loss`` to the adapter's parameters.

    Args:
        velocity: The model, adapter on.
        task: Trajectory, advantages, drawn chunks.
        plan: K chunks covering the N - 1 trainable steps.
        config: The objective.
        scale: Weight of this group in the update (1 / groups); ``task.weight`` comes on top.
        is_on_policy: The policy is the one that sampled the trajectory, so every ratio is 1.
        device: Where the model wants its input.
        batch_size: Sample-steps in one call of the model; as many as there are samples when None.
        mixes_times: The model takes a time for each sample.
        check_cancel: Called after every micro-step.

    Returns:
        Statistics of the ratios as measured, and the number of sample-steps that went through
        backward with a gradient.
    """
    facts, terms = task.facts(plan), _on_policy_terms(task)
    whole, rest = task.batches(plan, config, batch_size, mixes_times=mixes_times)

    def weights() -> StepTerms:
        found = coefficients(terms, facts, config)
        return StepTerms(*(c * (scale * task.weight) for c in found))

    if not is_on_policy:
        with torch.no_grad():
            for batch in step_batches(rest, batch_size, mixes_times=mixes_times):
                _store(terms, batch, _terms_of_batch(velocity, task, batch, config, device))
                check_cancel()
    known = weights()
    rest = rest & torch.stack([weight != 0 for weight in known]).any(0)
    open_batches = [] if is_on_policy else list(map(id, whole))
    passes = 0
    with torch.enable_grad():
        for batch in _in_order([*whole, *step_batches(rest, batch_size, mixes_times=mixes_times)]):
            found = _terms_of_batch(velocity, task, batch, config, device)
            _store(terms, batch, found)
            of_batch = weights() if id(batch) in open_batches else known
            passes += _backward(found, of_batch, batch)
            check_cancel()
    return chunk_statistics(terms, facts, task.trained_chunks(config), config), passes


def _in_order(batches: Iterable[MicroBatch]) -> list[MicroBatch]:
    """Early steps first."""
    return sorted(batches, key=lambda batch: int(batch.steps[0]))


def _backward(terms: StepTerms, weights: StepTerms, batch: MicroBatch) -> int:
    """Add the gradient of one micro-batch; returns how many sample-steps have one."""
    counted = slice(batch.count)
    samples, steps = batch.samples[counted], batch.steps[counted]
    own = [weight[samples, steps] for weight in weights]
    has_gradient = torch.stack([weight != 0 for weight in own]).any(0)
    if has_gradient.any():
        parts = [
            (weight.to(value.device) * value[counted]).sum()
            for weight, value in zip(own, terms, strict=True)
            if value.requires_grad
        ]
        torch.stack(parts).sum().backward()
    return int(has_gradient.sum())
