"""Score a group in a thread while the next one is sampled.

Worth it where decoding and scoring need little of what the rollout needs: a reward on another
device or behind a network. Results come in the order of the groups, and are those of scoring
afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

__all__ = ["Overlap"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class Overlap(Generic[A, B, C]):
    """``with Overlap(work, then, is_on) as overlap:``, in it :meth:`add` items, then
    :meth:`results`.

    One thread does the work, so that items are worked on one after the other and in order. An
    exception of the work is raised by :meth:`results`, or by the next :meth:`add`.
    """

    def __init__(self, work: Callable[[A], B], then: Callable[[A, B], C], is_on: bool) -> None:
        """Set up.

        Args:
            work: What a thread can do meanwhile.
            then: Makes the result of it, in the thread that calls :meth:`add`, soon.
            is_on: If not, all is done by :meth:`results`, without a thread.
        """
        self._work, self._then, self._is_on = work, then, is_on
        self._waiting: deque[tuple[A, Callable[[], B], Callable[[], bool]]] = deque()
        self._results: list[C] = []
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Overlap[A, B, C]:
        if self._is_on:
            self._pool = ThreadPoolExecutor(1, "score")
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            # After an error what waits is dropped; what runs must end, for it may hold a device.
            self._pool.shutdown(cancel_futures=True)

    def add(self, item: A) -> None:
        """Begin, or note, the work on one item."""
        if self._pool is None:
            self._waiting.append((item, partial(self._work, item), lambda: False))
            return
        future = self._pool.submit(self._work, item)
        self._waiting.append((item, future.result, future.done))
        while self._waiting[0][2]():
            self._finish_one()
            if not self._waiting:
                return

    def results(self) -> list[C]:
        """Wait for all of them."""
        while self._waiting:
            self._finish_one()
        return self._results

    def _finish_one(self) -> None:
        item, result, _ = self._waiting.popleft()
        self._results.append(self._then(item, result()))
