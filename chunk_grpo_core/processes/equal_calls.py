"""Make processes call a model that is spread over them equally often.

Each call of such a model is a conversation of all processes (its weights are gathered block by
block), but the processes have different amounts of work: other chunks are drawn, groups without
signal have no gradient, the self-test looks for a good step size. So before every call they agree
on what comes next; whoever has nothing of that kind to do makes a call whose result nobody takes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["LockStep"]

_NOTHING, _GRADIENT, _FORWARD = range(3)


class LockStep:
    """Rounds in which every process makes one call of the same kind; off until :meth:`start`.

    A kind is a call without gradients, or one with gradients and the one backward pass that
    follows it. Calls without gradients go first.
    """

    def __init__(self, largest: Callable[[int], int]) -> None:
        """Args: ``largest``: Tells every process the largest of the numbers that they give."""
        self._largest = largest
        self._idle: Callable[[bool], None] | None = None

    def start(self, idle: Callable[[bool], None]) -> None:
        """Agree on every call from now on.

        Args:
            idle: Makes one call of the model for the sake of the others; if the argument is True
                with gradients, and with a backward pass that leaves no gradient behind.
        """
        self._idle = idle

    def before_call(self) -> None:
        """Wait until it is the turn of this process to call the model."""
        mine = _GRADIENT if torch.is_grad_enabled() else _FORWARD
        while (kind := self._largest(mine)) != mine:
            self._make_idle_call(kind)

    def settle(self) -> None:
        """Take part in the calls of the others until nobody has any more. Comes before every
        other collective, because a process that waits in one cannot call the model."""
        if self._idle is None:
            return
        while (kind := self._largest(_NOTHING)) != _NOTHING:
            self._make_idle_call(kind)

    def _make_idle_call(self, kind: int) -> None:
        assert self._idle is not None
        with torch.set_grad_enabled(kind == _GRADIENT):
            self._idle(kind == _GRADIENT)
