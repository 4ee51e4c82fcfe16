"""What ``validate_inputs`` of a node answers."""

from __future__ import annotations

from collections.abc import Callable

from ..chunk_grpo_core.settings.declared import shortened

__all__ = ["choice", "verdict"]

_NUMBER = (int, float)


def verdict(
    check: Callable[..., object], *values: object, kind: type | tuple[type, ...] = (str, *_NUMBER)
) -> bool | str:
    """True, or what ``check`` finds wrong with the values.

    ComfyUI passes None for a value that comes through a link: it is not known yet, and ``execute``
    will check it. It also passes values whose type it has found wrong.

    Args:
        check: Raises ValueError.
        values: Of widgets.
        kind: What they must be.
    """
    if None in values:
        return True
    for value in values:
        if not isinstance(value, kind):
            return f"{shortened(value)} is no value that a widget can hold"
    try:
        check(*values)
    except (ValueError, OSError) as error:
        return str(error)
    return True


def choice(name: str, value: object) -> str:
    """A value of a choice, which a prompt of the API may give as anything.

    Raises:
        ValueError: It is no text.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shortened(value)}; choose one of those offered")
    return value
