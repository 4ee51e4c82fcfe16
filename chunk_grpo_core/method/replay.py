"""Recorded steps under the present policy: what an update compares with the rollout.

Legend: G samples in a group, B rows of one call, N steps, ``*latent`` the model's latent shape.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .policy import Velocity
from .rollout import Trajectory
from .rules import Transition, gaussian_log_p

__all__ = ["Replay", "replay_step", "replay_steps"]


class Replay(NamedTuple):
    """One recorded step under the present policy, B samples."""

    v_t: Tensor
    """Velocity, float32, shape (B, *latent)."""
    transition: Transition
    """p(x_s | x_t) now."""
    log_p: Tensor
    """Its log-density at the recorded x_s, float32, shape (B,)."""

    @property
    def detached(self) -> Replay:
        """The numbers alone; holds nothing for backward."""
        mean, std = self.transition
        return Replay(self.v_t.detach(), Transition(mean.detach(), std), self.log_p.detach())


def replay_step(
    velocity: Velocity,
    trajectory: Trajectory,
    step: int,
    samples: Tensor | slice = slice(None),
    device: torch.device | str = "cpu",
) -> Replay:
    """Evaluate the present policy on one recorded step, with gradients if enabled.

    Args:
        velocity: The model.
        trajectory: What was sampled.
        step: 0-based stochastic step, below N - 1.
        samples: Which of the G samples, B of them.
        device: Where the model wants its input.

    Raises:
        ValueError: The step was deterministic for one of the samples.
    """
    _check_stochastic(trajectory, step, samples)
    t, s = trajectory.grid.pairs()[step]
    x_t = trajectory.states[step][samples].to(device)
    x_s = trajectory.states[step + 1][samples].to(device)
    v_t = velocity(x_t, t, trajectory.example)
    transition = trajectory.sde.transition(x_t, v_t, t, s)
    return Replay(v_t, transition, gaussian_log_p(x_s, transition))


def replay_steps(
    velocity: Velocity,
    trajectory: Trajectory,
    steps: Tensor,
    samples: Tensor,
    device: torch.device | str = "cpu",
) -> list[tuple[int, Tensor, Replay]]:
    """Evaluate several recorded steps in one call of the model; see :func:`replay_step`.

    Args:
        velocity: A model that takes a time for each sample, unless all steps are the same one.
        trajectory: What was sampled.
        steps: 0-based stochastic steps, rising, shape (B,).
        samples: The sample of each, shape (B,).
        device: Where the model wants its input.

    Returns:
        For each step its number, samples and replay, in the order of the B rows.

    Raises:
        ValueError: A step was deterministic for its sample.
    """
    distinct, counts = (values.tolist() for values in steps.unique_consecutive(return_counts=True))
    if len(distinct) == 1:
        step = distinct[0]
        return [(step, samples, replay_step(velocity, trajectory, step, samples, device))]
    for step, samples_of_step in zip(distinct, samples.split(counts), strict=True):
        _check_stochastic(trajectory, step, samples_of_step)
    pairs = trajectory.grid.pairs()
    times = torch.tensor([pairs[step][0] for step in steps.tolist()], device=device)
    x_t = trajectory.states[steps, samples].to(device)
    x_s = trajectory.states[steps + 1, samples].to(device)
    v_t = velocity(x_t, times, trajectory.example)
    by_step = zip(distinct, *(rows.split(counts) for rows in (x_t, x_s, v_t, samples)), strict=True)
    replays = []
    for step, x, x_next, v, samples_of_step in by_step:
        transition = trajectory.sde.transition(x, v, *pairs[step])
        log_p = gaussian_log_p(x_next, transition)
        replays.append((step, samples_of_step, Replay(v, transition, log_p)))
    return replays


def _check_stochastic(trajectory: Trajectory, step: int, samples: Tensor | slice) -> None:
    if not trajectory.stochastic[step][samples].all():
        raise ValueError(
            f"step {step} was deterministic for some of these samples, so it has no log-density; "
            "train on steps that took noise"
        )
