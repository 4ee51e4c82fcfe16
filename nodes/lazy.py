"""Lazy inputs: a node looks at what is light before it asks for what is heavy.

ComfyUI runs what stands before a lazy input only when ``check_lazy_status`` of the node names it.
It hands over None for an input whose value has not arrived, and leaves out those that are not
connected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ask_next", "is_awaited"]


def is_awaited(inputs: Mapping[str, Any], name: str) -> bool:
    """Whether an input is connected and has not arrived."""
    return name in inputs and inputs[name] is None


def ask_next(
    inputs: Mapping[str, Any], stages: Sequence[Sequence[str]], nothing_may_come: Sequence[str] = ()
) -> list[str]:
    """Names of the inputs of the first stage that has not arrived.

    Args:
        inputs: As ``check_lazy_status`` gets them.
        stages: Names of lazy inputs, in the order in which they are needed.
        nothing_may_come: Those whose value may be None. Nobody sees whether they have arrived, so
            they are asked for with every stage after theirs, which does no harm.
    """
    asked: list[str] = []
    for stage in stages:
        asked += [name for name in stage if is_awaited(inputs, name)]
        if any(name not in nothing_may_come for name in asked):
            break
    return asked
