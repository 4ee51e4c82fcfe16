"""Numbers of inputs that must be numbers: NaN is refused by ComfyUI itself, at its input.

ComfyUI asks whether a value is smaller than ``min`` or larger than ``max``; NaN is neither.
"""

from __future__ import annotations

from comfy_api.latest import io

__all__ = ["Least", "refuse_nan"]


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
