"""Windows: which consecutive chunks an iteration trains, and which steps of a rollout take noise.

MixGRPO adds noise to, and trains, a window of consecutive steps that moves over the training from
noise to data; the other steps follow the ODE. Here the unit is the chunk: with one step per chunk
a window of 4 chunks is a window of 4 steps.

Legend: G samples in a group, K chunks, N steps.

References:
    MixGRPO: Unlocking Flow-based GRPO Efficiency with Mixed ODE-SDE (Li et al., 2025),
    arXiv 2507.21802. Its code's script: window of 4 steps, moved by 1 every 25 iterations,
    back to the start after the end (``roll_back``). The end is another one: there the window runs
    out of steps, with 3, 2, 1 and 0 of them for 25 iterations each, and never trains the last
    trainable one; ours stays whole, trains the last step in its last place, and starts again. With
    25 steps the two differ from iteration 500 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..settings.declared import OneOf, Range, check_settings, shortened
from .chunks import ChunkPlan
from .noise import derive_seed
from .solvers import SOLVERS

__all__ = [
    "NOISE",
    "WINDOWS",
    "WindowConfig",
    "check_noise",
    "noisy_steps",
    "window_chunks",
    "window_positions",
]

WINDOWS = ("all", "fixed", "sliding", "random")

NOISE = ("all", "window", "drawn")
"""Which steps take noise: every one, those of the window, or of each sample those it will train."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowConfig:
    """The chunks of one iteration. All but ``kind`` default to MixGRPO's numbers."""

    kind: Annotated[str, OneOf(WINDOWS)] = "all"
    """all: every chunk. fixed: the same window for the whole run. sliding: from ``start`` towards
    data, and back to ``start`` after the end (MixGRPO: progressive). random: anywhere, anew in each
    iteration."""
    chunks: Annotated[int, Range(1, 1000)] = 4
    """Chunks in the window."""
    start: Annotated[int, Range(0, 999)] = 0
    """First chunk of a fixed window, and of a sliding one at iteration 0; 0-based."""
    stride: Annotated[int, Range(1, 1000)] = 1
    """Chunks by which a sliding window moves, in 1..``chunks``, so that none is passed over."""
    every: Annotated[int, Range(1, 1_000_000)] = 25
    """Iterations after which a sliding window moves."""

    def __post_init__(self) -> None:
        check_settings(self, "window")
        if not 1 <= self.stride <= self.chunks:
            raise ValueError(
                f"window.stride is {self.stride}; it must be in 1..{self.chunks} (the chunks of "
                "the window), or chunks are passed over"
            )


def window_positions(config: WindowConfig, plan: ChunkPlan) -> list[range]:
    """All windows that a run may use; those of a sliding window in its order.

    Raises:
        ValueError: The window does not fit into the plan, or has no room to move.
    """
    if config.kind == "all":
        return [range(plan.count)]
    start = 0 if config.kind == "random" else config.start
    last = plan.count - config.chunks
    if start > last:
        raise ValueError(
            f"a window of {config.chunks} chunks that starts at chunk {start} does not fit into a "
            f"plan of {plan.count} chunks (counted from 0)"
        )
    if config.kind == "fixed":
        starts = [start]
    elif start == last:
        raise ValueError(
            f"a {config.kind} window of {config.chunks} chunks that starts at chunk {start} has no "
            f"room to move in a plan of {plan.count} chunks; use fewer chunks, or kind 'fixed'"
        )
    else:
        stride = config.stride if config.kind == "sliding" else 1
        starts = [*range(start, last, stride), last]
    return [range(first, first + config.chunks) for first in starts]


def window_chunks(config: WindowConfig, plan: ChunkPlan, iteration: int, seed: int) -> range:
    """The 0-based chunks of one iteration.

    Args:
        config: Kind and size.
        plan: K chunks.
        iteration: 0-based.
        seed: Seed of the run, for a random window.
    """
    positions = window_positions(config, plan)
    if config.kind == "random":
        return positions[derive_seed(seed, "window", iteration) % len(positions)]
    return positions[iteration // config.every % len(positions)]


def check_noise(noise: str, ode_solver: str, window: WindowConfig) -> None:
    """Refuse unknown choices, and choices that would have no effect together.

    Args:
        noise: One of :data:`NOISE`.
        ode_solver: One of :data:`~chunk_grpo_core.method.solvers.SOLVERS`.
        window: The chunks of an iteration.

    Raises:
        ValueError: Either is unknown; ``noise`` is that of a window, but there is none; or there is
            a solver, but no step for it.
    """
    for name, value, choices in (("noise", noise, NOISE), ("ode_solver", ode_solver, SOLVERS)):
        if value not in choices:
            raise ValueError(
                f"{name} is {shortened(value)}; it must be one of {', '.join(choices)}"
            )
    if noise == "window" and window.kind == "all":
        raise ValueError(
            "noise is 'window', but window.kind is 'all', so that no step is outside; choose "
            "a window, or noise 'all'"
        )
    if noise == "all" and ode_solver != "euler":
        raise ValueError(
            f"ode_solver is {ode_solver!r}, but with noise 'all' no step follows the ODE; "
            "set noise to 'window' or 'drawn'"
        )


def noisy_steps(noise: str, plan: ChunkPlan, window: range, drawn: Tensor) -> Tensor:
    """Which steps of a group's rollout take noise.

    Args:
        noise: One of :data:`NOISE`.
        plan: K chunks covering N - 1 steps.
        window: Chunks of this iteration.
        drawn: Bool, shape (G, K): the chunks each sample will train on.

    Returns:
        Bool, shape (G, N - 1); true wherever ``drawn`` is.
    """
    if noise == "drawn":
        return plan.spread(drawn)
    chunks = torch.zeros_like(drawn)
    chunks[:, window.start : window.stop] = True
    return plan.spread(chunks if noise == "window" else torch.ones_like(drawn))
