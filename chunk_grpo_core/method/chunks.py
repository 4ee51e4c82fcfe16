"""Chunk plans: which consecutive steps share one importance ratio, and which chunks are trained.

A plan partitions the N - 1 trainable steps into K chunks ch_1 .. ch_K (Eq. 12-13, GCPO v3). One
step per chunk is step-level GRPO; one chunk in all is sequence level: the same code, another plan.

Legend: G samples in a group, K chunks, N steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real

import torch
from torch import Tensor

from ..settings.declared import shortened
from .dynamics import DynamicsCurve, PlanSource

__all__ = [
    "ChunkPlan",
    "chunk_weights",
    "draw_chunks",
    "drawn_count",
    "fixed_size_plan",
    "manual_plan",
    "per_step_plan",
    "whole_plan",
]

_LONGEST = 10_000
"""Steps in one chunk, more than anyone samples."""
_LEAST, _MOST = 1e-30, 1e30
"""Weights that float32 holds, and whose sums it holds."""


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Sizes of the chunks, from noise to data, and how they are drawn."""

    sizes: tuple[int, ...]
    """Steps in each of the K chunks; their sum is the number of trainable steps."""
    weights: tuple[float, ...] | None = None
    """Proportional to the probability of drawing each chunk first; 0 never trains a chunk; None
    draws uniformly."""
    source: PlanSource | None = field(default=None, compare=False)
    """The curve that sizes or weights were read off; None if they were chosen. No part of the
    training: plans of equal sizes and weights are equal."""

    def __post_init__(self) -> None:
        sizes, weights = self.sizes, self.weights
        if not sizes or not all(_is(size, Integral) and 1 <= size <= _LONGEST for size in sizes):
            raise ValueError(
                f"chunk sizes are {shortened(list(sizes))}; give at least one, each 1 or more (a "
                f"whole number, {_LONGEST} at most)"
            )
        if weights is None:
            return
        if len(weights) != len(sizes):
            raise ValueError(f"{len(sizes)} chunks need as many weights, got {shortened(weights)}")
        are_weights = all(_is(w, Real) and (w == 0 or _LEAST <= w <= _MOST) for w in weights)
        if not are_weights or not any(weights):
            raise ValueError(
                f"chunk weights must be 0 or more, and one above 0, got {shortened(list(weights))} "
                f"(those above 0 from {_LEAST} to {_MOST}; only their proportions matter)"
            )

    @property
    def count(self) -> int:
        """K, the number of chunks."""
        return len(self.sizes)

    @property
    def steps(self) -> int:
        """The number of steps covered."""
        return sum(self.sizes)

    def bounds(self) -> list[tuple[int, int]]:
        """First and past-the-last step of each chunk."""
        ends = [sum(self.sizes[: k + 1]) for k in range(self.count)]
        return [(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def chunk_of(self, step: int) -> int:
        """Index of the chunk that holds a 0-based step."""
        return next(k for k, (start, end) in enumerate(self.bounds()) if start <= step < end)

    def spread(self, of_chunks: Tensor) -> Tensor:
        """Give every step what its chunk has: shape (..., K) -> (..., number of steps)."""
        return of_chunks.repeat_interleave(torch.tensor(self.sizes), dim=-1)

    def check_covers(self, trainable_steps: int) -> None:
        """Make sure that the plan partitions exactly the steps that will be trained.

        Raises:
            ValueError: It does not; the message says by how much.
        """
        if self.steps != trainable_steps:
            raise ValueError(
                f"chunk sizes {shortened(list(self.sizes))} cover {self.steps} steps, but there "
                f"are {trainable_steps} trainable ones (the number of sampling steps minus the "
                "last, deterministic one); let the sizes add up to "
                f"{trainable_steps}, or take {self.steps + 1} sampling steps"
            )

    def to_json(self) -> dict[str, object]:
        """Plain lists; :meth:`from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> ChunkPlan:
        """Read what :meth:`to_json` wrote."""
        weights, source = data.get("weights"), data.get("source")
        return cls(
            _listed("sizes", data["sizes"]),
            None if weights is None else _listed("weights", weights),
            None if source is None else PlanSource.from_json(source),
        )


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _listed(name: str, value: object) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"plan.{name} is {shortened(value)}; it must be a list of numbers")
    return tuple(value)


def manual_plan(sizes: Sequence[int], trainable_steps: int) -> ChunkPlan:
    """Use the given sizes, for example (2, 3, 4, 7) for 16 trainable steps (paper, v1)."""
    plan = ChunkPlan(tuple(sizes))
    plan.check_covers(trainable_steps)
    return plan


def fixed_size_plan(size: int, trainable_steps: int) -> ChunkPlan:
    """Cut chunks of ``size`` steps; the last one may be shorter."""
    if not 1 <= size <= trainable_steps:
        raise ValueError(f"chunk size is {size}; it must be in 1..{trainable_steps}")
    full, rest = divmod(trainable_steps, size)
    return ChunkPlan((size,) * full + ((rest,) if rest else ()))


def per_step_plan(trainable_steps: int) -> ChunkPlan:
    """One chunk for each step: step-level GRPO (Flow-GRPO, DanceGRPO)."""
    return ChunkPlan((1,) * trainable_steps)


def whole_plan(trainable_steps: int) -> ChunkPlan:
    """One chunk in all: sequence-level optimisation."""
    return ChunkPlan((trainable_steps,))


def chunk_weights(plan: ChunkPlan, curve: DynamicsCurve, softmax: float | None = None) -> ChunkPlan:
    """Weigh each chunk by its mean change m_j on the curve; the weights sum to 1.

    One curve, a mean over prompts that is measured before the training, weighs the chunks of all
    samples. The official code weighs those of each sample by the changes of its own trajectory,
    known only after its rollout; here the draw comes before, so that noise can follow it.

    Args:
        plan: K chunks.
        curve: Measured with the sampler that will train.
        softmax: None weighs in proportion, w_j = m_j / sum m (Eq. 17, GCPO v3). A temperature T
            above 0 weighs by softmax(m / T): the smaller T, the more of the draws go to the chunk
            that changes most, until the others reach weight 0 and are never drawn.

    Raises:
        ValueError: The curve and the plan have different numbers of steps, the temperature is out
            of range, or no step of the curve changes.
    """
    plan.check_covers(len(curve.mean) - 1)
    means = [sum(curve.mean[a:b]) / (b - a) for a, b in plan.bounds()]
    if softmax is not None:
        if not 0.0 < softmax < math.inf:
            raise ValueError(f"the softmax temperature is {softmax}; it must be above 0")
        means = [math.exp((mean - max(means)) / softmax) for mean in means]
    elif not sum(means) > 0:
        raise ValueError("the curve has no step with any change; weights cannot be read off it")
    shares = (mean / sum(means) for mean in means)
    weights = tuple(share if share >= _LEAST else 0.0 for share in shares)
    return replace(plan, weights=weights, source=curve.source)


def drawn_count(plan: ChunkPlan, fraction: float, window: range) -> int:
    """How many chunks each sample trains on: fraction * chunks of the window, rounded down, but 1
    at least. (The official code rounds down too; where that gives 0, it trains nothing.)

    Raises:
        ValueError: The fraction is not in (0, 1], or too few chunks have a weight above 0.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"the fraction of chunks to train is {fraction}; it must be in (0, 1]")
    count = max(1, int(len(window) * fraction))
    weighted = sum(plan.weights is None or plan.weights[chunk] > 0 for chunk in window)
    if weighted < count:
        place = "" if len(window) == plan.count else f" (of the window {list(window)})"
        raise ValueError(
            f"a fraction of {fraction} draws {count} of {len(window)} chunks{place}, but only "
            f"{weighted} have a weight above 0; lower the fraction, or change the weights"
        )
    return count


def draw_chunks(
    plan: ChunkPlan, fraction: float, group_size: int, seed: int, window: range | None = None
) -> Tensor:
    """Choose the chunks each sample trains on, without replacement.

    Args:
        plan: K chunks, with or without weights.
        fraction: Part of the chunks to train, in (0, 1]; see :func:`drawn_count`.
        group_size: G.
        seed: Seed of the draw.
        window: 0-based chunks to draw from; all K when None.

    Returns:
        Bool, shape (G, K), with the same number of chunks true in every row.
    """
    window = range(plan.count) if window is None else window
    count = drawn_count(plan, fraction, window)
    weights = torch.zeros(plan.count)
    weights[window.start : window.stop] = torch.tensor(plan.weights or (1.0,) * plan.count)[
        window.start : window.stop
    ]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(
        weights.expand(group_size, -1), count, replacement=False, generator=generator
    )
    return torch.zeros(group_size, plan.count, dtype=torch.bool).scatter_(1, chosen, True)
