"""Signals that end a training: they set a flag, and the run stops where nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ..method.cancel import Cancelled

__all__ = ["Stopped", "StopSignals", "stop_signals"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Ctrl-C, what batch systems and containers send, a closed terminal, and Windows' Ctrl-Break."""
_GRACE = 0.5
"""Seconds in which further signals count as the same one: many programs send or pass on two."""
_NOTICE = "\nstopping after the current step; a second signal ends at once\n"
_SHOW_CURSOR = "\x1b[?25h"


class Stopped(Cancelled):
    """A signal ended the run; its number is ``signal``."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = signal.Signals(number)


class StopSignals:
    """What has come so far."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._time = 0.0

    def check(self) -> None:
        """The cancel check of a run.

        Raises:
            Stopped: A signal has come.
        """
        if self._first is not None:
            raise Stopped(self._first)

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: remember the first, end the process at the second."""
        if self._first is None:
            self._first, self._time = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                _say(_NOTICE)
        elif time.monotonic() - self._time > _GRACE:
            if sys.stderr.isatty():
                _say(_SHOW_CURSOR)  # the progress bar has hidden it
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handle signals for as long as the block lasts; only the main thread can.

    One that is ignored stays ignored, as ``nohup`` and the background jobs of a script want it.
    """
    signals = StopSignals()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, signals.hear)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _say(text: str) -> None:
    """Write at once, without a lock; the terminal may be gone."""
    with suppress(OSError):
        os.write(2, text.encode())
