"""Numbers of inputs stay inside their limits, NaN included, wherever they come from.

ComfyUI asks whether the value of a widget is smaller than ``min`` or larger than ``max``; NaN is
neither. Of a value that comes through a link it asks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

__all__ = ["Least", "check_limits", "refuse_nan"]


class Least(float):
    """The least value of an input: NaN counts as smaller."""

    __slots__ = ()

    def __gt__(self, other: float) -> bool:
        """Python asks this of ``other < self``, because the class is derived from float."""
        return not other >= float(self)


def refuse_nan(schema: io.Schema) -> None:
    """Let no input of a float with a least value take NaN."""
    for made in schema.inputs:
        if isinstance(made, io.Float.Input) and made.min is not None:
            made.min = Least(made.min)


def check_limits(schema: io.Schema, inputs: Mapping[str, Any]) -> None:
    """Hold the numbers that a node gets to the limits of its inputs.

    Args:
        schema: Of the node.
        inputs: As ``execute`` or ``check_lazy_status`` gets them; None has not arrived.

    Raises:
        ValueError: One is out of its limits.
    """
    for made in schema.inputs:
        if not isinstance(made, (io.Int.Input, io.Float.Input)):
            continue
        given = inputs.get(made.id)
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, (int, float)) and not _is_inside(value, made.min, made.max):
                kind = "a whole number" if isinstance(made, io.Int.Input) else "a number"
                limits = " to ".join(f"{x:.15g}" for x in (made.min, made.max) if x is not None)
                raise ValueError(f"{made.id} is {value}; it must be {kind} from {limits}")


def _is_inside(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= float(least)) and (most is None or value <= most)
