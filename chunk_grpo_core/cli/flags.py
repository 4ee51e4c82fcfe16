"""Flags that exclude each other, so that none wins silently."""

from __future__ import annotations

__all__ = ["give_one"]


def give_one(**given: object) -> None:
    """Refuse two flags of which only one can count.

    Args:
        given: Name of a flag, with underscores -> what the user gave; None, False or an empty list
            for a flag that was not given.

    Raises:
        ValueError: More than one was given; the message names the first two.
    """
    flags = [
        f"--{name.replace('_', '-')}"
        for name, value in given.items()
        if value is not None and value is not False and value != []
    ]
    if len(flags) > 1:
        raise ValueError(f"{flags[0]} and {flags[1]} were both given; give one of them")
