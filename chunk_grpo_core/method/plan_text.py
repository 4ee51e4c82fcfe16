"""Chunk plans and their weights as people write them; nothing else reads such text.

    2, 3, 4, 7      sizes of the chunks, from noise to data
    step            one chunk for each step
    whole           one chunk in all
    size 4          chunks of 4 steps; the last one may be shorter
    cut 4           the flattest 4 chunks of a curve; ``cut 4 2``: of at least 2 steps each
    adaptive        cut where a curve turns; ``adaptive 2 4``: smallest and largest chunk

Weights are ``uniform``, ``curve``, ``softmax``, ``softmax 0.5``, or one number for each chunk.
Words and numbers stand apart by spaces, commas or semicolons; brackets around them are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..settings.declared import shortened
from .chunks import (
    ChunkPlan,
    chunk_weights,
    fixed_size_plan,
    manual_plan,
    per_step_plan,
    whole_plan,
)
from .dynamics import DynamicsCurve
from .planners import adaptive_plan, segment_plan

__all__ = [
    "EXAMPLE_STEPS",
    "check_plan_text",
    "check_word_alone",
    "needs_curve",
    "plan_steps",
    "read_plan",
    "read_weights",
    "weight_numbers",
    "weights_need_curve",
]


@dataclass(frozen=True)
class _Planner:
    """What a word stands for."""

    numbers: tuple[int, ...]
    """How many numbers may follow the word."""
    plan: Callable[..., ChunkPlan]
    """Takes the number of trainable steps, or the curve, and the numbers."""
    needs_curve: bool = False


_PLANNERS = {
    "step": _Planner((0,), per_step_plan),
    "whole": _Planner((0,), whole_plan),
    "size": _Planner((1,), lambda steps, size: fixed_size_plan(size, steps)),
    "cut": _Planner((1, 2), segment_plan, needs_curve=True),
    "adaptive": _Planner((0, 2), adaptive_plan, needs_curve=True),
}
_PLAN_FORMS = (
    "sizes such as '2, 3, 4, 7', or 'step', 'whole', 'size 4', 'cut 4', 'cut 4 2', 'adaptive' or "
    "'adaptive 2 4'"
)
_SOFTMAX = re.compile(r"softmax(?: (\d+\.?\d*|\.\d+))?")
EXAMPLE_STEPS = 16
"""Trainable steps of the paper; a plan in words is drawn for them as long as none are known."""
_SOME_STEPS = 10_000
"""More than anyone samples; stands for a number of steps that is not known yet."""


def _words(text: str) -> list[str]:
    bare = text.strip().lower().strip("[]()")
    return [word for word in re.split(r"[\s,;]+", bare) if word]


def _read(text: str) -> tuple[_Planner | None, list[int]]:
    """The planner that a text names, None for plain sizes, and the numbers in it."""
    words = _words(text)
    planner = _PLANNERS.get(words[0]) if words else None
    numbers = words[1:] if planner else words
    is_complete = len(numbers) in planner.numbers if planner else numbers
    if not is_complete or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"the chunk plan is {shortened(text)}; write {_PLAN_FORMS}")
    with _named("plan", text):
        return planner, [int(number) for number in numbers]


def needs_curve(text: str) -> bool:
    """Whether a plan written like this is read off a curve."""
    words = _words(text)
    return bool(words) and words[0] in _PLANNERS and _PLANNERS[words[0]].needs_curve


def plan_steps(text: str) -> int | None:
    """How many steps a plan written as sizes covers; None for the other forms, and for none."""
    try:
        planner, numbers = _read(text)
    except ValueError:
        return None
    return None if planner else sum(numbers)


def check_plan_text(text: str) -> None:
    """Make sure that a text can be a plan of some number of steps.

    Raises:
        ValueError: It cannot.
    """
    planner, _ = _read(text)
    if planner is None or not planner.needs_curve:
        read_plan(text, plan_steps(text) or _SOME_STEPS)


def check_word_alone(text: str, weights: str) -> None:
    """Make sure that a plan in words fits any number of steps, and needs no curve.

    Args:
        text: As :func:`read_plan` takes it, not sizes.
        weights: As :func:`read_weights` takes it.

    Raises:
        ValueError: The plan or its weights need a curve, or the weights a known number of chunks.
    """
    check_plan_text(text)
    if needs_curve(text):
        raise ValueError(f"the plan {shortened(text)} is read off a curve; connect one")
    if _words(weights) != ["uniform"]:
        raise ValueError(
            f"weights is {shortened(weights)}, but how many chunks {shortened(text)} gives is not "
            "known here; connect a curve, write all sizes as numbers, or write 'uniform'"
        )


def read_plan(text: str, trainable_steps: int, curve: DynamicsCurve | None = None) -> ChunkPlan:
    """Read a plan as a user writes it.

    Args:
        text: One of the forms above.
        trainable_steps: What the plan must cover.
        curve: The measured curve, for ``cut`` and ``adaptive``.

    Raises:
        ValueError: The text is none of these, needs a curve, or does not fit.
    """
    planner, numbers = _read(text)
    if planner and planner.needs_curve and curve is None:
        raise ValueError(f"the plan {shortened(text)} is read off a curve; connect one")
    with _named("plan", text):
        if planner is None:
            return manual_plan(numbers, trainable_steps)
        return planner.plan(curve if planner.needs_curve else trainable_steps, *numbers)


@contextmanager
def _named(name: str, text: str) -> Iterator[None]:
    """Put what the user wrote before the message of an error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name} {shortened(text)}: {error}") from error


def weights_need_curve(text: str) -> bool:
    """Whether weights written like this are read off a curve."""
    words = _words(text)
    return words == ["curve"] or _SOFTMAX.fullmatch(" ".join(words)) is not None


def weight_numbers(text: str) -> list[str] | None:
    """The numbers of weights that are written as numbers; None for the words."""
    words = _words(text)
    return None if words == ["uniform"] or weights_need_curve(text) else words


def read_weights(text: str, plan: ChunkPlan, curve: DynamicsCurve | None = None) -> ChunkPlan:
    """Give a plan the weights that a user wrote.

    Args:
        text: ``"uniform"``; ``"curve"``, ``"softmax"`` or ``"softmax 0.5"`` (temperature, 1 if left
            out), see :func:`~chunk_grpo_core.method.chunks.chunk_weights`; or one number, 0 or
            more, for each chunk, such as ``"0.4, 0.35, 0.2, 0.05"``; only their proportions matter.
        plan: K chunks.
        curve: The measured curve, for ``"curve"`` and ``"softmax"``.

    Raises:
        ValueError: The text is none of these, or needs a curve.
    """
    words = _words(text)
    if words == ["uniform"]:
        return replace(plan, weights=None)
    softmax = _SOFTMAX.fullmatch(" ".join(words))
    if softmax or words == ["curve"]:
        if curve is None:
            raise ValueError(
                f"weights is {shortened(text)}, but no curve is connected to take them from"
            )
        with _named("weights", text):
            return chunk_weights(plan, curve, float(softmax[1] or 1.0) if softmax else None)
    try:
        return replace(plan, weights=tuple(float(word) for word in words))
    except ValueError as error:
        raise ValueError(
            f"weights is {shortened(text)}; write 'uniform', 'curve', 'softmax', 'softmax 0.5', or "
            f"one number, 0 or more, for each of the {plan.count} chunks ({error!s:.200})"
        ) from error
