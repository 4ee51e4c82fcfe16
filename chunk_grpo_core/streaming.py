"""Gradient of the chunk objective, one step at a time.

The loss of a group depends on the network only through its log-densities, so

    dloss/dtheta = sum over samples i and steps t of  c[i, t] * dlog p[i, t]/dtheta,
    c = dloss/dlog p  (a small matrix, from autograd on the pure function in objective.py).

Therefore only one micro-batch of one step is ever held for backward, whatever the chunk length,
and the gradient is still exactly that of the clipped chunk objective. Two passes are needed when
the ratio is not known (log p without gradients first, then backward); right after a rollout the
ratio is 1 by construction, c is known in advance, and one pass is enough.

Legend: G samples in a group, K chunks, N steps, B samples in a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .chunks import ChunkPlan
from .events import CheckCancel, never_cancel
from .objective import (
    ChunkStatistics,
    ObjectiveConfig,
    chunk_statistics,
    clipped_loss,
    log_ratios,
)
from .policy import Velocity
from .rollout import Trajectory, replay_log_p

__all__ = ["GroupTask", "accumulate_group", "log_p_coefficients", "recompute_old_log_p"]


_SMALLEST_BATCH = 4


@dataclass(frozen=True)
class GroupTask:
    """One group, ready to be trained on."""

    trajectory: Trajectory
    advantages: Tensor
    """A_i, CPU float32, shape (G,)."""
    drawn: Tensor
    """Bool, shape (G, K): the chunks each sample trains on."""

    @property
    def has_signal(self) -> Tensor:
        """Samples that can change the policy, bool, shape (G, 1)."""
        return (self.advantages != 0)[:, None]

    def needed_steps(self, plan: ChunkPlan) -> Tensor:
        """The sample-steps inside drawn chunks, bool, shape (G, N - 1)."""
        columns = [self.drawn[:, plan.chunk_of(step)] for step in range(plan.steps)]
        return torch.stack(columns, 1) & self.has_signal


def log_p_coefficients(
    log_p: Tensor, task: GroupTask, plan: ChunkPlan, config: ObjectiveConfig
) -> Tensor:
    """dloss/dlog p at the given log-densities, shape (G, N - 1); 0 where nothing is trained."""
    old = task.trajectory.log_p.T
    with torch.enable_grad():
        leaf = log_p.detach().clone().requires_grad_(True)
        log_ratio = log_ratios(leaf, old, plan, config)
        loss = clipped_loss(log_ratio, task.advantages, task.drawn, plan, config)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def _micro_batches(needed: Tensor, size: int | None) -> Iterator[tuple[int, Tensor, int]]:
    """Yield (step, sample indices, how many of them count) until every true entry of a (G, N - 1)
    mask has counted once; the indices behind those only fill the batch up."""
    for step in range(needed.shape[1]):
        samples = needed[:, step].nonzero().flatten()
        for part in samples.split(size or max(len(samples), 1)):
            if len(part):
                smallest = min(_SMALLEST_BATCH, size or len(needed), len(needed))
                yield step, _padded(part, len(needed), smallest), len(part)


def _padded(part: Tensor, group_size: int, smallest: int) -> Tensor:
    """Fill a very small batch up with other samples of the group, which get no gradient.

    CPU matrix kernels round differently below four rows; with them a ratio that should be exactly
    1 would be 1 + 1e-8.
    """
    others = [i for i in range(group_size) if i not in part.tolist()]
    return torch.cat([part, part.new_tensor(others[: max(smallest - len(part), 0)])])


@torch.no_grad()
def _measure_log_p(
    velocity: Velocity,
    task: GroupTask,
    plan: ChunkPlan,
    device: torch.device | str,
    batch_size: int | None,
    check_cancel: CheckCancel,
) -> Tensor:
    """Log-densities of the needed steps under the present policy, shape (G, N - 1)."""
    log_p = task.trajectory.log_p.T.clone()
    for step, part, _ in _micro_batches(task.needed_steps(plan), batch_size):
        log_p[part, step] = replay_log_p(velocity, task.trajectory, step, part, device).cpu()
        check_cancel()
    return log_p


def recompute_old_log_p(
    velocity: Velocity,
    task: GroupTask,
    plan: ChunkPlan,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    check_cancel: CheckCancel = never_cancel,
) -> GroupTask:
    """Replace the old log-densities by ones measured with the batch shapes of training.

    Kernels may give other last bits for another batch shape; with a clip range of 5e-5 that would
    count as a change of policy. Call it before the first update of a rollout.
    """
    log_p = _measure_log_p(velocity, task, plan, device, batch_size, check_cancel)
    return replace(task, trajectory=replace(task.trajectory, log_p=log_p.T))


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
    check_cancel: CheckCancel = never_cancel,
) -> tuple[ChunkStatistics, int]:
    """Add the gradient of ``scale * loss`` to the adapter's parameters.

    Args:
        velocity: The model, adapter on.
        task: Trajectory, advantages, drawn chunks.
        plan: K chunks covering the N - 1 trainable steps.
        config: The clip range.
        scale: Weight of this group in the update (1 / groups).
        is_on_policy: The policy is the one that sampled the trajectory, so every ratio is 1.
        device: Where the model wants its input.
        batch_size: Samples in one call of the model; all that need the step when None.
        check_cancel: Called after every micro-step.

    Returns:
        Statistics of the ratios as measured, and the number of sample-steps that went through
        backward. In the one-pass case the statistics also cover only those.
    """
    old = task.trajectory.log_p.T
    if is_on_policy:
        log_p = old.clone()
    else:
        log_p = _measure_log_p(velocity, task, plan, device, batch_size, check_cancel)
    coefficients = log_p_coefficients(log_p, task, plan, config) * scale
    passes = 0
    with torch.enable_grad():
        for step, part, count in _micro_batches(coefficients != 0, batch_size):
            new = replay_log_p(velocity, task.trajectory, step, part, device)
            weights = coefficients[part[:count], step].to(new.device)
            (weights * new[:count]).sum().backward()
            log_p[part, step] = new.detach().cpu()
            passes += count
            check_cancel()

    log_ratio = log_ratios(log_p, old, plan, config)
    counted = task.drawn & task.has_signal
    return chunk_statistics(log_ratio, task.advantages, counted, plan, config), passes
