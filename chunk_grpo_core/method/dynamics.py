"""Temporal dynamics: how much a latent changes at each step.

    l1      mean |x_s - x_t| / mean |x_t|                                      (Eq. 16, GCPO v3)
    l2      ||x_s - x_t|| / ||x_t||                                            (Table 10, GCPO v3)
    cosine  1 - <x_s, x_t> / (||x_s|| ||x_t||)                                 (Table 10, GCPO v3)

The curve hardly depends on the prompt but strongly on the sampler: a stochastic rollout falls
where the ODE rises. So measure it with the rule, eta and grid that will train.

Legend: P trajectories (one for each prompt), G samples in each, N steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..settings.declared import shortened
from .rollout import Trajectory

__all__ = [
    "DISTANCES",
    "DynamicsCurve",
    "PlanSource",
    "cosine_distance",
    "dynamics_curve",
    "relative_l1",
    "relative_l2",
]


def relative_l1(trajectory: Trajectory) -> Tensor:
    """Relative L1 change of every step and sample, 0 or more, shape (N, G)."""
    states = trajectory.states.flatten(2)
    change = (states[1:] - states[:-1]).abs().mean(2)
    return change / states[:-1].abs().mean(2)


def relative_l2(trajectory: Trajectory) -> Tensor:
    """Relative L2 change of every step and sample, 0 or more, shape (N, G)."""
    states = trajectory.states.flatten(2)
    return (states[1:] - states[:-1]).norm(dim=2) / states[:-1].norm(dim=2)


def cosine_distance(trajectory: Trajectory) -> Tensor:
    """One minus the cosine between consecutive states, in 0..2, shape (N, G).

    Taken as half the squared distance of unit vectors, which keeps its digits at small angles.
    """
    directions = normalize(trajectory.states.flatten(2), dim=2)
    return 0.5 * (directions[1:] - directions[:-1]).square().sum(2)


#: Name -> distance of consecutive states. None of them depends on the scale of the latents.
DISTANCES: dict[str, Callable[[Trajectory], Tensor]] = {
    "l1": relative_l1,
    "l2": relative_l2,
    "cosine": cosine_distance,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSource:
    """The settings of the curve that a chunk plan was read off."""

    rule: str
    eta: float
    sigmas: tuple[float, ...]
    """The time grid, N + 1 levels."""
    model: str
    """Name of the model; empty if it was not given."""
    distance: str

    @classmethod
    def from_json(cls, data: dict) -> PlanSource:
        """Read what ``dataclasses.asdict`` wrote."""
        return cls(**{**data, "sigmas": tuple(data["sigmas"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicsCurve:
    """The change of each step with its spread, and the settings it was measured with."""

    mean: tuple[float, ...]
    """Mean over prompts, one number for each of the N steps (the last, untrained one included)."""
    std: tuple[float, ...]
    """Standard deviation between prompts; all 0 with one prompt."""
    prompts: int
    """P, the number of prompts averaged."""
    samples: int
    """Trajectories in all, P * G."""
    sigmas: tuple[float, ...]
    """The time grid, N + 1 levels."""
    rule: str
    eta: float
    model: str
    """Name of the model."""
    distance: str = "l1"
    """One of :data:`DISTANCES`."""

    @property
    def source(self) -> PlanSource:
        """What a plan read off this curve remembers of it."""
        return PlanSource(
            rule=self.rule,
            eta=self.eta,
            sigmas=self.sigmas,
            model=self.model,
            distance=self.distance,
        )

    def to_json(self) -> dict[str, object]:
        """Plain numbers, lists and strings; :meth:`from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> DynamicsCurve:
        """Read what :meth:`to_json` wrote."""
        tuples = {key: tuple(data[key]) for key in ("mean", "std", "sigmas")}
        return cls(**{**data, **tuples})


def dynamics_curve(
    trajectories: Sequence[Trajectory], model: str = "", distance: str = "l1"
) -> DynamicsCurve:
    """Average the change of each step over each group, then over prompts.

    Args:
        trajectories: One for each prompt, all sampled with the same grid and SDE settings.
        model: Name of the model, for the record.
        distance: One of :data:`DISTANCES`.

    Raises:
        ValueError: There is no trajectory, they were sampled with different settings or hold
            values that are not finite, or the distance is unknown.
    """
    if distance not in DISTANCES:
        raise ValueError(
            f"distance is {shortened(distance)}; it must be one of {', '.join(DISTANCES)}"
        )
    if not trajectories:
        raise ValueError("there is no trajectory to analyse; roll out at least one prompt")
    first = trajectories[0]
    if any((t.grid, t.sde) != (first.grid, first.sde) for t in trajectories):
        raise ValueError("the trajectories were sampled with different grids or SDE settings")
    if first.sde.is_stochastic and not all(t.stochastic.all() for t in trajectories):
        raise ValueError(
            f"some steps took no noise, but the rule is {first.sde.rule}; roll out with noise at "
            "every step to measure its curve"
        )
    per_prompt = torch.stack([DISTANCES[distance](t).mean(1) for t in trajectories])  # (P, N)
    if not per_prompt.isfinite().all():
        raise ValueError("the latents hold values that are not finite; check model and precision")
    spread = per_prompt.std(0) if len(trajectories) > 1 else torch.zeros(per_prompt.shape[1])
    return DynamicsCurve(
        mean=tuple(per_prompt.mean(0).tolist()),
        std=tuple(spread.tolist()),
        prompts=len(trajectories),
        samples=sum(t.group_size for t in trajectories),
        sigmas=first.grid.sigmas,
        rule=first.sde.rule,
        eta=first.sde.eta,
        model=model,
        distance=distance,
    )
