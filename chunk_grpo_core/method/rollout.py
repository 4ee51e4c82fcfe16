"""Sample by step: roll one example's group out from noise to data and keep every state.

Legend: G samples in a group, N steps, ``*latent`` the model's latent shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..prompts.example import Example, Prompt
from .cancel import CheckCancel, never_cancel
from .micro_batches import SMALLEST_BATCH
from .noise import Noise, draw_normal
from .policy import Velocity
from .rules import SdeConfig, gaussian_log_p
from .schedule import TimeGrid
from .solvers import solver_named
from .walk import StepNoise, batches, walk

__all__ = ["Trajectory", "rollout"]


@dataclass(frozen=True)
class Trajectory:
    """One example's group, sampled. Everything on the CPU in float32."""

    example: Example
    """What all samples of the group show."""
    grid: TimeGrid
    sde: SdeConfig
    states: Tensor
    """x at every level, shape (N + 1, G, *latent); states[0] is noise, states[N] is x_0. Of a
    sampler that shows no more, both ends alone: shape (2, G, *latent)."""
    log_p: Tensor
    """Log-density of each step under the policy that sampled it, shape (N - 1, G); 0 where the step
    was deterministic."""
    stochastic: Tensor
    """Whether a step took noise, bool, shape (N - 1, G); only such steps can be trained on."""
    means: Tensor | None = None
    """Mean of each stochastic step's Gaussian, shape (N - 1, G, *latent), if they were kept."""
    answers: Tensor | None = None
    """What a person has said of the pictures already: 1 (preferred, liked) or -1, float32, shape
    (G,). They stand in for scores and advantages; None lets the reward judge."""

    @classmethod
    def of_ends(cls, example: Example, grid: TimeGrid, x_1: Tensor, x_0: Tensor) -> Trajectory:
        """What is left of a rollout whose steps nobody saw; none of them can be trained on.

        Args:
            example: What all samples show.
            grid: N steps.
            x_1: Initial noise, shape (G, *latent).
            x_0: The finished latents, shape (G, *latent).
        """
        log_p = torch.zeros(grid.trainable_steps, len(x_1))
        states, no_noise = torch.stack([x_1, x_0]), SdeConfig(rule="ode", eta=0.0)
        return cls(example, grid, no_noise, states, log_p, torch.zeros_like(log_p).bool())

    @property
    def x_0(self) -> Tensor:
        """The finished latents, shape (G, *latent)."""
        return self.states[-1]

    @property
    def group_size(self) -> int:
        """G."""
        return self.states.shape[1]


@torch.no_grad()
def rollout(
    velocity: Velocity,
    example: Prompt,
    grid: TimeGrid,
    sde: SdeConfig,
    noise: Noise,
    latent_shape: Sequence[int],
    *,
    stochastic: Tensor | None = None,
    solver: str = "euler",
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    keep_means: bool = False,
    check_cancel: CheckCancel = never_cancel,
) -> Trajectory:
    """Sample one group.

    Args:
        velocity: The model, see :class:`~chunk_grpo_core.method.policy.Velocity`.
        example: What all samples of the group show; a string is only its text.
        grid: N steps; the last one is deterministic whatever the rule.
        sde: The rule of the other steps.
        noise: Seeds of the group; also fixes G.
        latent_shape: Shape of one latent.
        stochastic: Which sample's which step follows ``sde``, bool, shape (G, N - 1); the others
            follow the ODE. All of them when None.
        solver: What follows the ODE, one of :data:`~chunk_grpo_core.method.solvers.SOLVERS`.
        device: Where the model wants its input.
        batch_size: Samples in one call of the model; all G when None.
        keep_means: Keep the mean of every stochastic step, for the exact KL to this policy; as
            much memory as the states take.
        check_cancel: Called after every call of the model.

    Raises:
        ValueError: ``stochastic`` has another shape, or asks for noise that ``sde`` does not have;
            or there is no such solver.
    """
    example = Example.of(example)
    stochastic = _checked(stochastic, sde, (noise.group_size, grid.trainable_steps))
    is_noisy = torch.nn.functional.pad(stochastic, (0, 1))  # no noise into s = 0
    pairs, follow = grid.pairs(), solver_named(solver)
    x_1, generators = noise.initial(latent_shape), noise.generators()
    states = torch.empty(grid.steps + 1, *x_1.shape)
    log_p = torch.zeros(grid.trainable_steps, noise.group_size)
    means = torch.zeros_like(states[:-2]) if keep_means else None
    states[0] = x_1

    def velocity_at(x_t: Tensor, t: float) -> Tensor:
        v_t = velocity(x_t, t, example)
        check_cancel()
        return v_t

    shared: dict[float, Tensor] = {}  # t -> velocity of all samples, as long as they are alike
    if noise.shared_start and noise.group_size > 1:
        rows = min(noise.group_size, batch_size or noise.group_size, _rows_alike(device))
        steps = pairs[: _steps_alike(is_noisy)]
        together = walk(velocity_at, x_1[:rows].to(device), steps, solver=follow)
        shared = {t: step.v_t[:1] for (t, _), step in zip(steps, together, strict=True)}
    for part in batches(noise.group_size, batch_size):
        taking = StepNoise(sde, is_noisy[part], _drawer(generators[part], latent_shape, device))
        steps = walk(
            lambda x_t, t: shared[t] if t in shared else velocity_at(x_t, t),
            x_1[part].to(device),
            pairs,
            solver=follow,
            noise=taking if sde.is_stochastic else None,
        )
        for number, step in enumerate(steps):
            states[number + 1, part] = step.x_s.cpu()
            if step.transition is not None:
                density = gaussian_log_p(step.x_s, step.transition).cpu()
                log_p[number, part] = torch.where(step.is_noisy, density, 0.0)
                if means is not None:
                    means[number, part] = step.transition.mean.cpu()
    return Trajectory(example, grid, sde, states, log_p, stochastic.T, means)


def _drawer(
    generators: Sequence[torch.Generator], latent_shape: Sequence[int], device: torch.device | str
) -> Callable[[], Tensor]:
    return lambda: draw_normal(generators, latent_shape).to(device)


def _steps_alike(noisy: Tensor) -> int:
    """Steps before which no sample has taken noise, so that all of a shared start are still alike.

    Args:
        noisy: Bool, shape (G, N).
    """
    steps = noisy.any(0).nonzero().flatten()
    return int(steps[0]) + 1 if len(steps) else noisy.shape[1]


def _rows_alike(device: torch.device | str) -> int:
    """Copies of a sample to compute, for the bits of a larger batch."""
    return SMALLEST_BATCH if torch.device(device).type == "cpu" else 1


def _checked(stochastic: Tensor | None, sde: SdeConfig, shape: tuple[int, int]) -> Tensor:
    """The mask of steps that take noise, or the error that explains what is wrong with it."""
    if stochastic is None:
        return torch.full(shape, sde.is_stochastic)
    if stochastic.dtype != torch.bool or stochastic.shape != shape:
        raise ValueError(
            f"stochastic is {stochastic.dtype} of shape {tuple(stochastic.shape)}; it must be bool "
            f"of shape (G, N - 1) = {shape}"
        )
    if stochastic.any() and not sde.is_stochastic:
        raise ValueError(f"sde is {sde.rule} with eta {sde.eta}; no step of it can be stochastic")
    return stochastic
