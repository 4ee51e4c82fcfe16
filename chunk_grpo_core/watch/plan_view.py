"""What an editor shows of a chunk plan while somebody writes it: its chunks and weights."""

from __future__ import annotations

from dataclasses import dataclass

from ..method.chunks import ChunkPlan
from ..method.dynamics import DynamicsCurve
from ..method.plan_text import (
    check_plan_text,
    needs_curve,
    plan_steps,
    read_plan,
    read_weights,
    weight_numbers,
    weights_need_curve,
)

__all__ = ["PlanView", "plan_view"]

MOST_STEPS = 1000
"""More steps than can be told apart in a picture."""
MOST_STEPS_TO_CUT = 100
"""With more steps, a cut of the curve takes too long for an answer while somebody types."""


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """What is known of a plan; JSON-ready by ``dataclasses.asdict``."""

    sizes: list[int] | None = None
    """Steps of each chunk; None if unknown."""
    weights: list[float] | None = None
    """Of each chunk; None if they are equal or unknown."""
    numbers: list[str] | None = None
    """The weights as they are written; None if no numbers are."""
    problem: str | None = None
    """What is wrong."""
    note: str | None = None
    """What is missing."""


def plan_view(
    chunk_sizes: str, weights: str | None = None, curve: DynamicsCurve | None = None
) -> PlanView:
    """Read a plan and its weights as far as they can be known.

    Args:
        chunk_sizes: As :func:`~chunk_grpo_core.method.plan_text.read_plan` takes it.
        weights: As :func:`~chunk_grpo_core.method.plan_text.read_weights` takes it, or None.
        curve: The measured curve, if there is one.
    """
    try:
        check_plan_text(chunk_sizes)
        plan, note = _plan_or_note(chunk_sizes, curve)
    except ValueError as error:
        return PlanView(problem=str(error))
    if plan is None:
        return PlanView(note=note)
    if plan.steps > MOST_STEPS:
        return PlanView(note=f"{plan.steps} steps are too many to draw")
    sizes, problem = list(plan.sizes), None
    try:
        if curve is not None:
            plan.check_covers(len(curve.mean) - 1)
    except ValueError as error:
        problem = f"{error}; run the graph again if the sigmas have changed"
        curve = None
    if weights is None:
        return PlanView(sizes=sizes, problem=problem)
    if weights_need_curve(weights) and curve is None:
        note = f"the weights {weights!r} need a curve: connect one and run the graph"
        return PlanView(sizes=sizes, problem=problem, note=note)
    try:
        weighted = read_weights(weights, plan, curve).weights
    except ValueError as error:
        return PlanView(sizes=sizes, problem=problem or str(error))
    if weighted is None:
        return PlanView(sizes=sizes, problem=problem)
    numbers = weight_numbers(weights)
    return PlanView(sizes=sizes, weights=list(weighted), numbers=numbers, problem=problem)


def _plan_or_note(text: str, curve: DynamicsCurve | None) -> tuple[ChunkPlan | None, str]:
    """The plan, or what is missing to know it."""
    covered = plan_steps(text)
    if covered is not None:
        return read_plan(text, covered), ""
    if curve is None:
        if not needs_curve(text):
            return None, f"{text!r} fits any number of steps; to see it, run the graph with a curve"
        return None, f"{text!r} is read off a curve: connect a curve and run the graph"
    steps = len(curve.mean) - 1
    if steps > (MOST_STEPS_TO_CUT if needs_curve(text) else MOST_STEPS):
        return None, f"run the graph to see the chunks of {text!r} in {steps} steps"
    return read_plan(text, steps, curve), ""
