"""Ranges and choices of settings, declared with the field, and one check of a whole dataclass.

    rank: Annotated[int, Range(1, 4096)] = 16
    rule: Annotated[str, OneOf(RULES)] = "flow"

``check_settings(self, "lora")`` in ``__post_init__`` refuses wrong types, numbers that are not
finite, and what is out of range. Widgets, comments of configuration files and tests ask
:func:`limits_of` for the same ranges.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

__all__ = [
    "EachOf",
    "Limits",
    "OneOf",
    "Range",
    "changed_fields",
    "check_settings",
    "limits_of",
    "shortened",
]

_LONGEST = 80
"""Characters of a value that a message shows."""
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 2000
_repr.maxlist = _repr.maxtuple = _repr.maxdict = 20


@dataclass(frozen=True, slots=True)
class Range:
    """Of a number: the smallest and the largest value that is allowed."""

    least: float
    most: float

    def __str__(self) -> str:
        """``from 1 to 4096``."""
        return f"from {_number(self.least)} to {_number(self.most)}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """Of a text: the values that are allowed."""

    choices: Collection[str]

    def __str__(self) -> str:
        """``one of a, b``."""
        return f"one of {', '.join(self.choices)}"


@dataclass(frozen=True, slots=True)
class EachOf:
    """Of a list of texts: the values that each of them may have."""

    choices: Collection[str]

    def __str__(self) -> str:
        """``of a, b``."""
        return f"of {', '.join(self.choices)}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a field may hold."""

    kind: type
    """bool, int, float, str, tuple (of texts), or a class."""
    can_be_none: bool
    bounds: Range | OneOf | EachOf | None
    """None if every finite value of the kind is allowed."""

    @property
    def allowed(self) -> str:
        """What is allowed, completing "it must be ..."."""
        names = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "a text",
            tuple: "a list",
        }
        text = names.get(self.kind, f"a {self.kind.__name__}")
        if isinstance(self.bounds, OneOf):
            text = str(self.bounds)
        elif self.bounds:
            text = f"{text} {self.bounds}"
        return f"{text}, or none" if self.can_be_none else text

    @property
    def range(self) -> Range:
        """Of a number that has one.

        Raises:
            TypeError: It has none.
        """
        if not isinstance(self.bounds, Range):
            raise TypeError(f"there is no range of {self.allowed}")
        return self.bounds

    def allow(self, value: object) -> bool:
        """Whether a value is of the kind and within the bounds."""
        if value is None:
            return self.can_be_none
        if self.kind in (int, float):
            number = Integral if self.kind is int else Real
            if isinstance(value, bool) or not isinstance(value, number):
                return False
            bounds = self.bounds if isinstance(self.bounds, Range) else Range(-1e300, 1e300)
            return bool(bounds.least <= value <= bounds.most)  # type: ignore[operator]
        if not isinstance(value, self.kind):
            return False
        if self.kind is tuple:
            texts = all(isinstance(item, str) for item in value)  # type: ignore[attr-defined]
            known = self.bounds.choices if isinstance(self.bounds, EachOf) else value
            return texts and all(item in known for item in value)  # type: ignore[attr-defined]
        return not isinstance(self.bounds, OneOf) or value in self.bounds.choices


@cache
def limits_of(kind: type) -> Mapping[str, Limits]:
    """Field of a dataclass -> what it may hold."""
    hints = get_type_hints(kind, include_extras=True)
    return MappingProxyType({field.name: _limits(hints[field.name]) for field in fields(kind)})


def check_settings(settings: Any, table: str = "") -> None:
    """Check every field of a dataclass against its limits.

    Args:
        settings: The object.
        table: What stands before the dot of its keys; empty for keys without one.

    Raises:
        ValueError: A value has the wrong type, is not finite or is out of range; the message names
            the key, the value and what is allowed.
    """
    for name, limits in limits_of(type(settings)).items():
        value = getattr(settings, name)
        if not limits.allow(value):
            key = f"{table}.{name}" if table else name
            raise ValueError(f"{key} is {shortened(value)}; it must be {limits.allowed}")


def shortened(value: object, longest: int = _LONGEST) -> str:
    """A value for a message: bounded in length and depth, without control characters."""
    try:
        text = _repr.repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        text = f"a number of {value.bit_length() if isinstance(value, int) else 'many'} bits"
    return text if len(text) <= longest else f"{text[:longest]}..."


def _limits(hint: Any) -> Limits:
    """Read an annotation such as ``Annotated[int | None, Range(1, 8)]``."""
    bounds = None
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)[:2]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not type(None))
    return Limits(get_origin(kind) or kind, type(None) in kinds, bounds)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def changed_fields(settings: Any) -> list[str]:
    """Names of the fields of a dataclass that differ from their defaults."""
    return [item.name for item in fields(settings) if getattr(settings, item.name) != item.default]
