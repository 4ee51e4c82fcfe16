"""Progress between the groups, scores and updates of an iteration, by calls of the model.

How many calls a phase takes depends on the algorithm, the sampler and the memory. Phases of later
iterations take about as many as the first one did, so its count is the measure. A first iteration
is followed by groups and updates alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..method.cancel import CheckCancel

__all__ = ["CallProgress"]

_PAUSE = 0.5
_SPANS = {"rollout": (0.0, 0.4), "score": (0.4, 0.6), "update": (0.6, 1.0)}
"""Where a phase begins and ends in its iteration."""


class CallProgress:
    """Tells how much of an iteration is done, never less than before."""

    def __init__(self, tell: Callable[[str, float], None], *, pause: float = _PAUSE) -> None:
        """Begin.

        Args:
            tell: Told the phase (rollout, score, update) and the part of the iteration that is
                done.
            pause: Least seconds between two news of calls; the rest is told at once.
        """
        self._tell, self._pause = tell, pause
        self._known: dict[str, int] = {}
        self._phase, self._calls, self._fraction, self._told = "", 0, 0.0, 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside this context calls belong to the phase, whose begin is told; after it, its number
        of calls is known."""
        self._phase, self._calls, self._fraction = name, 0, _SPANS[name][0]
        self.reach(0.0)
        try:
            yield
            self._known[name] = self._calls
        finally:
            self._phase = ""

    def after(self, check: CheckCancel) -> CheckCancel:
        """A check that is made after every call, and counts it."""

        def counted() -> None:
            check()
            self.call()

        return counted

    def is_in(self, name: str) -> bool:
        """Whether this is the phase."""
        return self._phase == name

    def reach(self, fraction: float) -> None:
        """So much of the phase is done, 0..1; told now."""
        start, end = _SPANS[self._phase]
        self._fraction = max(self._fraction, start + (end - start) * fraction)
        self._told = time.monotonic()
        self._tell(self._phase, self._fraction)

    def call(self) -> None:
        """A call of the model is done."""
        self._calls += 1
        if self._phase not in self._known or time.monotonic() - self._told < self._pause:
            return
        self.reach(self._calls / max(self._known[self._phase], self._calls + 1))
