"""A family of models from what it says of diffusers' pipeline."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..family import Checkpoint, Family
from .entry import PipelineEntry
from .grid import pipeline_grid
from .loading import load_policy
from .model import PipelineModel

__all__ = ["pipeline_family"]


_TESTED = (
    "tested on a small model of the true class with random weights, against diffusers' own "
    "pipeline; not with real weights"
)


def pipeline_family(
    entry: PipelineEntry,
    *,
    name: str,
    title: str,
    table: type[PipelineModel],
    checkpoints: tuple[Checkpoint, ...],
    few_steps: int,
) -> Family[Any]:
    """Make the family; the arguments are those of :class:`~..family.Family`."""
    return Family(
        name=name,
        title=title,
        table=table,
        load=partial(load_policy, entry, checkpoints),
        grid=partial(pipeline_grid, entry),
        few_steps=few_steps,
        imports=tuple(
            f"diffusers.{kind}" for kind in (entry.pipeline, entry.transformer, entry.vae)
        ),
        example={"path": checkpoints[0].name},
        checkpoints=checkpoints,
        needs=f"diffusers>={entry.since}",
        tested=_TESTED,
    )
