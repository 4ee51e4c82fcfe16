"""GenEval's rules: objects found in a picture against those asked for. Pure, no networks.

``Verdict.correct`` is GenEval's own: all that is included is there, nothing excluded is, and
further objects of an included class do not matter unless they are excluded. ``Verdict.credit`` is
the mean over conditions that Flow-GRPO trains on (the "score" of its GenEval server), where each
included class must be there in exactly its number.

Departures from that server: 1. the credit of a number, 1 - |wanted - found| / wanted, stops at 0,
where the server goes on below; 2. a place gives one condition, where the server counts a wrong one
as wrong and as right; 3. an excluded class that is not included is a condition too.

Legend: H W picture size.

References:
    GenEval (Ghosh et al., 2023), arXiv 2310.11513, section 3; Flow-GRPO (Liu et al., 2025),
    arXiv 2505.05470, section 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .task import Task

__all__ = [
    "CONFIDENCE",
    "COUNTING_CONFIDENCE",
    "MAX_PER_CLASS",
    "Box",
    "ColourNamer",
    "Detection",
    "Verdict",
    "judge",
    "relations",
]

CONFIDENCE = 0.3
"""Detections must be surer than this,"""
COUNTING_CONFIDENCE = 0.9
"""or than this, if the task is to count."""
MAX_PER_CLASS = 16
"""Only so many of one class are looked at, the surest ones."""
_OVERLAP = 0.1
_DIRECTION = 0.5

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """An object in a picture."""

    label: str
    """Its class."""
    score: float
    """How sure the detector is, 0..1."""
    box: Box
    mask: Tensor | None = None
    """Which pixels are its own, bool (H, W); None: all in the box."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a picture is worth for a task."""

    correct: bool
    """Whether the picture is right, by GenEval."""
    credit: float
    """Share of the conditions that are met, 0..1; 1 only for a picture that is right."""


ColourNamer = Callable[[Sequence[Detection]], Sequence[str]]
"""Detections of one class -> the colour of each, one of :data:`~.task.COLOURS`."""


def judge(task: Task, detections: Sequence[Detection], colours_of: ColourNamer) -> Verdict:
    """Decide on one picture.

    Args:
        task: What is asked for.
        detections: All that was found, in any order.
        colours_of: Called only where the task names a colour and enough objects were found.
    """
    floor = COUNTING_CONFIDENCE if task.tag == "counting" else CONFIDENCE
    by_label = _surest(detections, floor)
    correct, conditions = True, []
    matched: list[Sequence[Detection] | None] = []  # for each entry, its objects if all is right
    for wish in task.include:
        here = by_label.get(wish.label, [])
        best, exact = here[: wish.count], len(here) == wish.count
        right = len(best) == wish.count
        conditions.append(max(0.0, 1.0 - abs(wish.count - len(here)) / wish.count))
        if wish.colour is not None:
            fitting = list(colours_of(best)).count(wish.colour) if right else 0
            right = fitting == wish.count
            conditions.append(fitting / wish.count if exact else 0.0)
        if wish.position is not None:
            relation, index = wish.position
            others = matched[index]
            right = right and others is not None and _all_stand(best, relation, others)
            conditions.append(float(right and exact))
        matched.append(best if right else None)
        correct = correct and right
    for limit in task.exclude:
        kept_out = len(by_label.get(limit.label, [])) < limit.count
        correct = correct and kept_out
        if all(wish.label != limit.label for wish in task.include):
            conditions.append(float(kept_out))
    return Verdict(correct=correct, credit=sum(conditions) / len(conditions))


def relations(box: Box, other: Box) -> frozenset[str]:
    """How a box stands to another: none, one or two of "left of", "right of", "above", "below".

    The offset of the centres, less a tenth of both sizes along each axis, over the length of the
    offset; a component beyond 0.5 counts.
    """
    offset = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(box[i + 2] - box[i]) + abs(other[i + 2] - other[i]) for i in (0, 1)]
    clear = [
        math.copysign(max(abs(o) - _OVERLAP * size, 0.0), o)
        for o, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(c) < 1e-3 for c in clear):
        return frozenset()
    across, down = (c / math.hypot(*offset) for c in clear)
    names = {
        "left of": across < -_DIRECTION,
        "right of": across > _DIRECTION,
        "above": down < -_DIRECTION,
        "below": down > _DIRECTION,
    }
    return frozenset(name for name, holds in names.items() if holds)


def _all_stand(objects: Sequence[Detection], relation: str, others: Sequence[Detection]) -> bool:
    return all(relation in relations(a.box, b.box) for a in objects for b in others)


def _surest(detections: Sequence[Detection], floor: float) -> dict[str, list[Detection]]:
    """Group detections by class, surest first."""
    by_label: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > floor:
            by_label.setdefault(detection.label, []).append(detection)
    return {label: some[:MAX_PER_CLASS] for label, some in by_label.items()}
