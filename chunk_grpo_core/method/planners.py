"""Chunk plans read off a curve: where do consecutive steps change alike?

Legend: N steps, of which the first N - 1 are trainable; K chunks.

References:
    GCPO (Luo et al., 2026), arXiv 2510.21583v3: the adaptive rule. It does not say when to stop
    (here at ``max_size``) nor to which step a difference belongs (here to the one it leads to).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .chunks import ChunkPlan
from .dynamics import DynamicsCurve

__all__ = ["adaptive_plan", "segment_plan"]


def adaptive_plan(curve: DynamicsCurve, min_size: int = 2, max_size: int = 4) -> ChunkPlan:
    """Cut where the curve turns, then recursively where its differences turn.

    Consecutive steps whose first difference has the same sign form a chunk; a stretch without a
    turn is cut in its middle; each part is cut again by its next-order differences until it has at
    most ``max_size`` steps. A piece below ``min_size`` joins its shorter neighbour.

    Args:
        curve: Measured with the sampler that will train.
        min_size: Smallest chunk, in 1..N-1.
        max_size: Largest chunk, at least ``min_size``; a merge may exceed it.

    Raises:
        ValueError: The sizes are out of range.
    """
    values = list(curve.mean[:-1])
    if not 1 <= min_size <= max_size:
        raise ValueError(f"min_size is {min_size} and max_size {max_size}; 1 <= min <= max needed")
    if min_size > len(values):
        raise ValueError(f"min_size is {min_size}, but there are {len(values)} trainable steps")
    sizes = _merged(_cut(values, 1, max_size), min_size)
    return ChunkPlan(tuple(sizes), source=curve.source)


def _cut(values: Sequence[float], order: int, max_size: int) -> list[int]:
    """Sizes of the pieces of one stretch."""
    if len(values) <= max_size:
        return [len(values)]
    differences = list(values)
    for _ in range(min(order, len(values) - 2)):
        differences = [b - a for a, b in zip(differences, differences[1:], strict=False)]
    signs = [math.copysign(1.0, d) if d else 0.0 for d in differences]
    offset = len(values) - len(signs)  # a difference belongs to the step it leads to
    turns = [i + offset for i in range(1, len(signs)) if signs[i] != signs[i - 1]]
    edges = [0, *(turns or [len(values) // 2]), len(values)]
    pieces = [values[a:b] for a, b in zip(edges, edges[1:], strict=False) if b > a]
    return [size for piece in pieces for size in _cut(piece, order + 1, max_size)]


def _merged(sizes: list[int], min_size: int) -> list[int]:
    """Join pieces that are too small to their shorter neighbour."""
    sizes = list(sizes)
    while len(sizes) > 1 and min(sizes) < min_size:
        index = sizes.index(min(sizes))
        neighbours = [i for i in (index - 1, index + 1) if 0 <= i < len(sizes)]
        other = min(neighbours, key=lambda i: sizes[i])
        low = min(index, other)
        sizes[low : low + 2] = [sizes[low] + sizes[low + 1]]
    return sizes


def segment_plan(curve: DynamicsCurve, chunks: int, min_size: int = 1) -> ChunkPlan:
    """Cut the logarithm of the curve into the K pieces that are flattest (least squares).

    Exact, by dynamic programming over all cuts.

    Args:
        curve: Measured with the sampler that will train.
        chunks: K.
        min_size: Smallest chunk.

    Raises:
        ValueError: K chunks of ``min_size`` do not fit, or the curve is not positive.
    """
    values = curve.mean[:-1]
    steps = len(values)
    if not (chunks >= 1 and min_size >= 1 and chunks * min_size <= steps):
        raise ValueError(
            f"{chunks} chunks of at least {min_size} steps do not fit into {steps} trainable steps"
        )
    if min(values) <= 0:
        raise ValueError("the curve has a step without any change; its logarithm cannot be cut")
    logs = [math.log(value) for value in values]
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for _ in range(chunks):  # best[end]: squared error and sizes of the best cut of the first steps
        longer = {}
        for end in range(min_size, steps + 1):
            options = [
                (error + _squared_error(logs[start:end]), (*sizes, end - start))
                for start, (error, sizes) in best.items()
                if end - start >= min_size
            ]
            if options:
                longer[end] = min(options)
        best = longer
    return ChunkPlan(best[steps][1], source=curve.source)


def _squared_error(values: Sequence[float]) -> float:
    """Squared deviation from the mean."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values)
