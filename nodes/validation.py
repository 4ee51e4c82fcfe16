"""What ``validate_inputs`` of a node answers."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["verdict"]


def verdict(check: Callable[..., object], *values: object) -> bool | str:
    """True, or what ``check`` finds wrong with the values.

    ComfyUI passes None for a value that comes through a link: it is not known yet, and ``execute``
    will check it.
    """
    if None in values:
        return True
    try:
        check(*values)
    except (ValueError, OSError) as error:
        return str(error)
    return True
