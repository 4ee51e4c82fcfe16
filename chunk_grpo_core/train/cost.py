"""Time and memory that a phase took, and how the numbers of several processes become one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

__all__ = ["largest", "peak_gib", "smallest", "timed"]


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Put the seconds that the block took into ``seconds[name]``."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def peak_gib(device: torch.device) -> float | None:
    """Largest memory that tensors have taken on a CUDA device, GiB; None elsewhere."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**30


def largest(values: Sequence[float | None]) -> float | None:
    """The largest known value; None if none is."""
    return max((value for value in values if value is not None), default=None)


def smallest(values: Sequence[int | None]) -> int | None:
    """The smallest known value; None if none is."""
    return min((value for value in values if value is not None), default=None)
