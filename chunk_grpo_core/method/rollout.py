"""Sample by step: roll one prompt's group out from noise to data and keep every state.

Legend: G samples in a group, N steps, ``*latent`` the model's latent shape.

Randomness: sample i of a group owns one generator, seeded from (seed, iteration, prompt, i), and
draws on the CPU, for every step whether or not the step takes noise. So a picture does not depend
on batch size, device or what else is sampled, the noise of a step does not depend on where else
there is noise, and a resumed run continues with the same noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cancel import CheckCancel, never_cancel
from .micro_batches import SMALLEST_BATCH
from .policy import Velocity
from .rules import SdeConfig, gaussian_log_p, ode_step, sample_step
from .schedule import TimeGrid
from .solvers import LastStep, Solver, solver_named

__all__ = ["Noise", "Trajectory", "derive_seed", "rollout", "sample_ode"]


def derive_seed(*parts: object) -> int:
    """Hash any printable parts to a seed in 0..2^63 - 1, stable across machines and versions."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Noise:
    """Sources of randomness of one group."""

    shared_start: bool
    """Whether all samples start from the same initial noise."""
    seed: int
    """Seed of the group, see :func:`derive_seed`."""
    group_size: int
    """Samples that are rolled out."""
    first: int = 0
    """Number of the first of them, where only a part of the group is rolled out."""

    def generators(self) -> list[torch.Generator]:
        """One fresh CPU generator for each sample, for the noise of its steps."""
        return [
            torch.Generator().manual_seed(derive_seed(self.seed, "steps", i)) for i in self._numbers
        ]

    @property
    def _numbers(self) -> range:
        return range(self.first, self.first + self.group_size)

    def initial(self, latent_shape: Sequence[int]) -> Tensor:
        """Draw x_1, CPU float32, shape (G, *latent)."""
        owners = [0] * self.group_size if self.shared_start else self._numbers
        return torch.stack(
            [
                torch.randn(
                    *latent_shape,
                    generator=torch.Generator().manual_seed(derive_seed(self.seed, "start", i)),
                )
                for i in owners
            ]
        )


@dataclass(frozen=True)
class Trajectory:
    """One prompt's group, sampled. Everything on the CPU in float32."""

    prompt: str
    grid: TimeGrid
    sde: SdeConfig
    states: Tensor
    """x at every level, shape (N + 1, G, *latent); states[0] is noise, states[N] is x_0."""
    log_p: Tensor
    """Log-density of each step under the policy that sampled it, shape (N - 1, G); 0 where the step
    was deterministic."""
    stochastic: Tensor
    """Whether a step took noise, bool, shape (N - 1, G); only such steps can be trained on."""
    means: Tensor | None = None
    """Mean of each stochastic step's Gaussian, shape (N - 1, G, *latent), if they were kept."""

    @property
    def x_0(self) -> Tensor:
        """The finished latents, shape (G, *latent)."""
        return self.states[-1]

    @property
    def group_size(self) -> int:
        """G."""
        return self.states.shape[1]


def _batches(count: int, size: int | None) -> list[slice]:
    size = size or count
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


@torch.no_grad()
def rollout(
    velocity: Velocity,
    prompt: str,
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
        prompt: The group's caption.
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
    stochastic = _checked(stochastic, sde, (noise.group_size, grid.trainable_steps))
    noisy = torch.nn.functional.pad(stochastic, (0, 1))  # no noise into s = 0
    x_1, generators, follow = noise.initial(latent_shape), noise.generators(), solver_named(solver)
    states = torch.empty(grid.steps + 1, *x_1.shape)
    log_p = torch.zeros(grid.trainable_steps, noise.group_size)
    means = torch.zeros_like(states[:-2]) if keep_means else None
    states[0] = x_1
    alike: list[Tensor] = []
    if noise.shared_start and noise.group_size > 1:
        rows = min(noise.group_size, batch_size or noise.group_size, _rows_alike(device))
        steps = grid.pairs()[: _steps_alike(noisy)]
        start = x_1[:rows].to(device)
        alike = _velocities_alike(velocity, prompt, steps, start, follow, check_cancel)
    for part in _batches(noise.group_size, batch_size):
        x_t, last = x_1[part].to(device), None
        for step, (t, s) in enumerate(grid.pairs()):
            is_known = step < len(alike)
            v_t = alike[step] if is_known else velocity(x_t, t, prompt).float()
            x_s = ode_step(x_t, follow(x_t, v_t, t, s, last), t, s).mean
            is_noisy = noisy[part, step].to(device).view(-1, *[1] * len(latent_shape))
            if s > 0.0 and sde.is_stochastic:
                transition = sde.transition(x_t, v_t, t, s)
                z = torch.stack([torch.randn(*latent_shape, generator=g) for g in generators[part]])
                sampled = sample_step(transition, z.to(device))
                x_s = torch.where(is_noisy, sampled, x_s)
                density = gaussian_log_p(sampled, transition).cpu()
                log_p[step, part] = torch.where(noisy[part, step], density, 0.0)
                if means is not None:
                    means[step, part] = transition.mean.cpu()
            last = LastStep(t, x_t - t * v_t, ~is_noisy)
            x_t = x_s
            states[step + 1, part] = x_t.cpu()
            if not is_known:
                check_cancel()
    return Trajectory(prompt, grid, sde, states, log_p, stochastic.T, means)


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


def _velocities_alike(
    velocity: Velocity,
    prompt: str,
    steps: Sequence[tuple[float, float]],
    x_t: Tensor,
    follow: Solver,
    check_cancel: CheckCancel,
) -> list[Tensor]:
    """Velocities of the first steps, which all samples have in common, each (1, *latent)."""
    found, last = [], None
    for t, s in steps:
        v_t = velocity(x_t, t, prompt).float()
        found.append(v_t[:1])
        x_s = ode_step(x_t, follow(x_t, v_t, t, s, last), t, s).mean
        last = LastStep(t, x_t - t * v_t, torch.ones_like(x_t, dtype=torch.bool))
        x_t = x_s
        check_cancel()
    return found


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


@torch.no_grad()
def sample_ode(
    velocity: Velocity,
    prompt: str,
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
        prompt: Caption of all samples.
        grid: Noise levels.
        x_1: Initial noise, shape (B, *latent).
        solver: One of :data:`~chunk_grpo_core.method.solvers.SOLVERS`.
        device: Where the model wants its input.
        batch_size: Samples in one call of the model; all B when None.
        check_cancel: Called after every call of the model.

    Returns:
        x_0, CPU float32, shape (B, *latent).
    """
    follow, finished = solver_named(solver), []
    for part in _batches(len(x_1), batch_size):
        x_t, last = x_1[part].to(device), None
        for t, s in grid.pairs():
            v_t = velocity(x_t, t, prompt).float()
            x_s = ode_step(x_t, follow(x_t, v_t, t, s, last), t, s).mean
            last = LastStep(t, x_t - t * v_t, torch.ones_like(x_t, dtype=torch.bool))
            x_t = x_s
            check_cancel()
        finished.append(x_t.cpu())
    return torch.cat(finished)
