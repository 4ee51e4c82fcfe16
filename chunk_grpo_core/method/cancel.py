"""How whoever started a long piece of work stops it."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Cancelled", "CheckCancel", "never_cancel"]


class Cancelled(Exception):
    """Raised by a cancel check; the run ends after the current micro-step and can be resumed."""


CheckCancel = Callable[[], None]
"""Called after every micro-step; raises (``Cancelled`` or the host's own exception) to stop."""


def never_cancel() -> None:
    """The cancel check of a run that nobody can cancel."""
