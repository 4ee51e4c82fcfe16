"""Which recorded steps of which samples go through the model together.

A *unit* is what shares one ratio: the steps of a chunk, or a single step. As soon as all steps of a
unit are known, so is its share of the gradient. So a unit that fits into a micro-batch whole needs
one pass through the model where longer ones need two (``method/streaming.py``).

A model that takes a time for each sample (``mixes_times``) can have any sample-steps in a batch;
else a batch is one step of several samples. Never more than a batch is held for backward.

Legend: G samples in a group, U units of a sample, N steps, B sample-steps in a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SMALLEST_BATCH", "MicroBatch", "step_batches", "whole_units"]

SMALLEST_BATCH = 4
"""CPU matrix kernels round differently below four rows; with them a ratio that should be exactly 1
would be 1 + 1e-8."""


@dataclass(frozen=True)
class MicroBatch:
    """Sample-steps, in the order of their steps."""

    steps: Tensor
    """0-based steps, shape (B,), rising."""
    samples: Tensor
    """Samples, shape (B,)."""
    count: int
    """How many count; those behind only fill a very small batch up. They are copies, because other
    samples of the group may not have taken noise at this step."""

    @classmethod
    def of(cls, pairs: Tensor, smallest: int) -> MicroBatch:
        """Take (step, sample) pairs, shape (B, 2), sorted, and fill them up to ``smallest``."""
        filled = torch.cat([pairs, pairs[-1:].expand(max(smallest - len(pairs), 0), 2)])
        return cls(filled[:, 0], filled[:, 1], len(pairs))


def step_batches(needed: Tensor, size: int | None, *, mixes_times: bool) -> Iterator[MicroBatch]:
    """Go through every true entry of a mask once, step by step.

    Args:
        needed: Bool, shape (G, N - 1).
        size: Most sample-steps in a batch; G when None.
        mixes_times: Whether a batch may have several steps.
    """
    size = size or len(needed)
    pairs = needed.T.nonzero()
    if mixes_times:
        batches = pairs.tensor_split(-(-len(pairs) // size)) if len(pairs) else ()
    else:
        counts = needed.sum(0)
        batches = [
            batch for step in pairs.split(counts[counts > 0].tolist()) for batch in step.split(size)
        ]
    for batch in batches:
        yield MicroBatch.of(batch, min(SMALLEST_BATCH, size, len(needed)))


def whole_units(
    trained: Tensor, bounds: Sequence[tuple[int, int]], size: int | None, *, mixes_times: bool
) -> tuple[list[MicroBatch], Tensor]:
    """Put as many units as possible into micro-batches whole.

    Args:
        trained: The units that are needed, bool, shape (G, U).
        bounds: First and last step (exclusive) of each unit.
        size: Most sample-steps in a batch; G when None.
        mixes_times: Whether a batch may have several steps. If not, only units of one step fit.

    Returns:
        The batches, and the units that did not fit, bool, shape (G, U).
    """
    size = size or len(trained)
    lengths = torch.tensor([last - first for first, last in bounds])
    fits = trained & (lengths <= (size if mixes_times else 1))
    smallest = min(SMALLEST_BATCH, size, len(trained))
    if not mixes_times:
        single = torch.zeros(len(trained), bounds[-1][1], dtype=torch.bool)
        for unit, (first, _) in enumerate(bounds):
            single[:, first] |= fits[:, unit]
        return list(step_batches(single, size, mixes_times=False)), trained & ~fits
    units = [(bounds[unit], sample) for unit, sample in fits.T.nonzero().tolist()]
    batches = []
    for group in _packed(units, size):
        pairs = sorted((step, sample) for bound, sample in group for step in range(*bound))
        batches.append(MicroBatch.of(torch.tensor(pairs), smallest))
    return batches, trained & ~fits


_Unit = tuple[tuple[int, int], int]


def _packed(units: Sequence[_Unit], size: int) -> list[list[_Unit]]:
    """Longest first, each into the first batch that has room (first-fit decreasing)."""
    batches: list[list[_Unit]] = []
    room: list[int] = []
    for unit in sorted(units, key=lambda unit: unit[0][0] - unit[0][1]):
        length = unit[0][1] - unit[0][0]
        place = next((i for i, free in enumerate(room) if free >= length), len(batches))
        if place == len(batches):
            batches.append([])
            room.append(size)
        batches[place].append(unit)
        room[place] -= length
    return batches
