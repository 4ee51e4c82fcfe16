"""The walk down a time grid, which everything that samples shares.

    for t, s in pairs:  x_s = step(x_t, v_t(x_t), t, s)

A step follows the ODE (through a solver) or a stochastic rule, sample by sample. The walk keeps no
record: whoever wants states, densities or velocities takes them from the steps as they come.

Legend: B samples, N steps, ``*latent`` the model's latent shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..prompts.example import Example, Prompt
from .cancel import CheckCancel, never_cancel
from .policy import Velocity
from .rules import ODE, SdeConfig, Transition, sample_step
from .schedule import TimeGrid
from .solvers import LastStep, Solver, euler, solver_named

__all__ = ["Step", "StepNoise", "batches", "sample_ode", "walk", "walk_to_end"]


class StepNoise(NamedTuple):
    """What makes steps of a walk stochastic."""

    sde: SdeConfig
    """The rule of the steps that take noise, a stochastic one."""
    is_noisy: Tensor
    """Which samples take it at which step, CPU bool, shape (B, N). A step into s = 0 takes none."""
    draw: Callable[[], Tensor]
    """Draws N(0, 1) on the device of x_t, shape (B, *latent). Called at every step into s > 0,
    also where no sample takes noise, so that no step's noise depends on where else there is."""


class Step(NamedTuple):
    """One step as it was taken."""

    v_t: Tensor
    """Velocity at its start, float32, broadcastable to x_s."""
    x_s: Tensor
    """Where it ended, float32, shape (B, *latent)."""
    is_noisy: Tensor
    """Which samples took noise, CPU bool, shape (B,)."""
    transition: Transition | None
    """The density that drew the samples that took noise; None where none did."""


def walk(
    velocity: Callable[[Tensor, float], Tensor],
    x_t: Tensor,
    pairs: Sequence[tuple[float, float]],
    *,
    solver: Solver = euler,
    noise: StepNoise | None = None,
) -> Iterator[Step]:
    """Take one step after the other.

    Args:
        velocity: (x_t, t) -> v_t, broadcastable to x_t.
        x_t: Where to start, float32, shape (B, *latent), on the device of the model.
        pairs: N steps (t, s), falling.
        solver: What steps without noise follow, one of the values of
            :data:`~chunk_grpo_core.method.solvers.SOLVERS`.
        noise: Which steps take noise; none when None.

    Yields:
        Each of the N steps, after it was taken.
    """
    last: LastStep | None = None
    for index, (t, s) in enumerate(pairs):
        v_t = velocity(x_t, t).float()
        ode_step = partial(_ode_step, solver, x_t, v_t, t, s, last)
        if noise is None or s <= 0.0:
            step = Step(v_t, ode_step(), torch.zeros(len(x_t), dtype=torch.bool), None)
        else:
            step = _noisy_step(noise, index, x_t, v_t, t, s, ode_step)
        yield step
        last = LastStep(t, x_t, v_t, ~_as_rows(step.is_noisy, x_t))
        x_t = step.x_s


def _ode_step(
    solver: Solver, x_t: Tensor, v_t: Tensor, t: float, s: float, last: LastStep | None
) -> Tensor:
    return ODE.transition(x_t, solver(x_t, v_t, t, s, last), t, s).mean


def _noisy_step(
    noise: StepNoise,
    index: int,
    x_t: Tensor,
    v_t: Tensor,
    t: float,
    s: float,
    ode_step: Callable[[], Tensor],
) -> Step:
    """Follow the rule where a sample takes noise and the ODE where not; compute what is needed."""
    is_noisy, z = noise.is_noisy[:, index], noise.draw()
    if not is_noisy.any():
        return Step(v_t, ode_step(), is_noisy, None)
    transition = noise.sde.transition(x_t, v_t, t, s)
    x_s = sample_step(transition, z)
    if not is_noisy.all():
        x_s = torch.where(_as_rows(is_noisy, x_t), x_s, ode_step())
    return Step(v_t, x_s, is_noisy, transition)


def _as_rows(samples: Tensor, x_t: Tensor) -> Tensor:
    """Make a mask of samples, shape (B,), broadcastable to x_t."""
    return samples.to(x_t.device).view(-1, *[1] * (x_t.ndim - 1))


def walk_to_end(
    velocity: Callable[[Tensor, float], Tensor],
    x_t: Tensor,
    pairs: Sequence[tuple[float, float]],
    *,
    solver: Solver = euler,
    noise: StepNoise | None = None,
) -> Tensor:
    """Where :func:`walk` ends, shape (B, *latent)."""
    for step in walk(velocity, x_t, pairs, solver=solver, noise=noise):
        x_t = step.x_s
    return x_t


def batches(count: int, size: int | None) -> list[slice]:
    """Cut ``count`` samples into calls of the model, of at most ``size`` each; one call if None."""
    size = size or count
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


@torch.no_grad()
def sample_ode(
    velocity: Velocity,
    example: Prompt,
    grid: TimeGrid,
    x_1: Tensor,
    *,
    solver: str = "euler",
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    check_cancel: CheckCancel = never_cancel,
) -> Tensor:
    """Sample without noise, as pictures are made after training.

    Args:
        velocity: The model.
        example: What all samples show; a string is only its text.
        grid: Noise levels.
        x_1: Initial noise, shape (B, *latent).
        solver: One of :data:`~chunk_grpo_core.method.solvers.SOLVERS`.
        device: Where the model wants its input.
        batch_size: Samples in one call of the model; all B when None.
        check_cancel: Called after every call of the model.

    Returns:
        x_0, CPU float32, shape (B, *latent).

    Raises:
        ValueError: There is no such solver.
    """
    example, follow = Example.of(example), solver_named(solver)

    def velocity_at(x_t: Tensor, t: float) -> Tensor:
        v_t = velocity(x_t, t, example)
        check_cancel()
        return v_t

    return torch.cat(
        [
            walk_to_end(velocity_at, x_1[part].to(device), grid.pairs(), solver=follow).cpu()
            for part in batches(len(x_1), batch_size)
        ]
    )
