"""Temporal dynamics: how much a latent changes at each step.

    L1rel(t) = mean |x_s - x_t| / mean |x_t|                                   (Eq. 16, GCPO v3)

The curve hardly depends on the prompt but strongly on the sampler: a stochastic rollout falls
where the ODE rises. So measure it with the rule, eta and grid that will train.

Legend: P trajectories (one for each prompt), G samples in each, N steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from .rollout import Trajectory

__all__ = ["DynamicsCurve", "dynamics_curve", "relative_l1"]


def relative_l1(trajectory: Trajectory) -> Tensor:
    """Relative L1 change of every step and sample, shape (N, G)."""
    states = trajectory.states.flatten(2)
    change = (states[1:] - states[:-1]).abs().mean(2)
    return change / states[:-1].abs().mean(2)


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicsCurve:
    """A relative-L1 curve with its spread and the settings it was measured with."""

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

    def to_json(self) -> dict[str, object]:
        """Plain numbers, lists and strings; :meth:`from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> DynamicsCurve:
        """Read what :meth:`to_json` wrote."""
        tuples = {key: tuple(data[key]) for key in ("mean", "std", "sigmas")}
        return cls(**{**data, **tuples})


def dynamics_curve(trajectories: Sequence[Trajectory], model: str = "") -> DynamicsCurve:
    """Average the relative L1 over each group, then over prompts.

    Raises:
        ValueError: There is no trajectory, or they were sampled with different settings.
    """
    if not trajectories:
        raise ValueError("there is no trajectory to analyse; roll out at least one prompt")
    first = trajectories[0]
    if any((t.grid, t.sde) != (first.grid, first.sde) for t in trajectories):
        raise ValueError("the trajectories were sampled with different grids or SDE settings")
    per_prompt = torch.stack([relative_l1(t).mean(1) for t in trajectories])  # (P, N)
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
    )
