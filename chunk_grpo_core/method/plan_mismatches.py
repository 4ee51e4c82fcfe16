"""Does a chunk plan belong to the training that uses it?

The curve of a latent's change depends on the sampler (``dynamics.py``). A plan read off the curve
of another sampler cuts in the wrong places, and its weights may favour the wrong end.
"""

from __future__ import annotations

import math

from .chunks import ChunkPlan
from .rules import SdeConfig
from .schedule import TimeGrid

__all__ = ["plan_mismatches"]

_SAME_SIGMA = 1e-4
"""Sigmas that differ less are the same: one side may have been float32."""


def plan_mismatches(
    plan: ChunkPlan | None, grid: TimeGrid, sde: SdeConfig, model: str
) -> list[str]:
    """Say where the curve of a plan was measured with other settings than training uses.

    Args:
        plan: One that was read off a curve, or not, or none.
        grid: Time grid of the training.
        sde: Sampler of the training.
        model: Name of the model that trains.

    Returns:
        One sentence for each setting: what the curve was measured with, what training uses, and
        what to do. Empty if all agree, or if the plan was read off no curve.
    """
    source = plan.source if plan else None
    if source is None:
        return []
    mismatches = []
    if source.rule != sde.rule:
        mismatches.append(
            f"The plan's curve was measured with rule {source.rule}, but training uses {sde.rule}; "
            "the curve of one rule may rise where that of another falls (ode and dance rise, flow "
            "and cps fall), which turns weights upside down, so measure it with the sampler that "
            "trains."
        )
    elif not math.isclose(source.eta, sde.eta, abs_tol=1e-6):
        mismatches.append(
            f"The plan's curve was measured with eta {source.eta:g}, but training uses "
            f"{sde.eta:g}; measure it again with the eta that trains."
        )
    if len(source.sigmas) != len(grid.sigmas):
        mismatches.append(
            f"The plan's curve was measured with {len(source.sigmas) - 1} steps, but training has "
            f"{grid.steps}; measure it again with the sigmas that train."
        )
    else:
        pairs = list(zip(source.sigmas, grid.sigmas, strict=True))
        was, now = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
        if abs(was - now) > _SAME_SIGMA:
            mismatches.append(
                f"The plan's curve was measured on other noise levels (sigma {was:.4g} where "
                f"training has {now:.4g}); measure it again with the sigmas that train."
            )
    if source.model and source.model != model:
        mismatches.append(
            f"The plan's curve was measured on the model {source.model}, but {model} trains; "
            "measure it again on the model that trains."
        )
    return mismatches
