"""Settings of a reward as people write them, and one check of them against what it declares.

Whatever makes a reward declares its settings: the parameters of a function and the fields of a
dataclass, with their types. The same check serves ``--setting``, configuration files, the node and
the library, before anything is loaded.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from ..settings.declared import Limits, shortened

__all__ = ["IN_WORDS", "checked_settings", "path_settings", "reward_settings"]

IN_WORDS = "reward {reward}: {name}"
"""How messages name a setting that stands in no file."""
_LARGEST_INTEGER = 2**31 - 1
_NAMES = {
    str: "a text",
    Path: "a text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    NoneType: "none",
}


def reward_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` with a VALUE in JSON, or else a text. Spaces around both are dropped.

    Raises:
        ValueError: There is no ``=``, KEY is not a name, or it was given twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not (key.isidentifier() and equals):
            raise ValueError(f"setting is {shortened(pair)}; write KEY=VALUE")
        if key in settings:
            raise ValueError(f"setting {key} was given twice")
        try:
            settings[key] = json.loads(text)
        except (ValueError, RecursionError):
            settings[key] = text
    return settings


def path_settings(declarations: Sequence[Callable[..., Any]]) -> frozenset[str]:
    """The settings that name files or folders: those whose type has a Path in it."""
    declared = _declared(declarations).items()
    return frozenset(name for name, entry in declared if _holds_path(entry.hint))


def _holds_path(hint: Any) -> bool:
    return hint is Path or any(_holds_path(part) for part in get_args(hint))


class _Declared(NamedTuple):
    hint: Any
    is_needed: bool


def checked_settings(
    declarations: Sequence[Callable[..., Any]],
    settings: Mapping[str, Any],
    *,
    reward: str,
    key: str = IN_WORDS,
    whole: bool = True,
) -> dict[str, Any]:
    """Check settings against the types of what will take them.

    Args:
        declarations: Functions and dataclasses; of settings with one name, the last counts.
        settings: As they were given.
        reward: Its name, for messages.
        key: How a message names a setting, with ``{reward}`` and ``{name}`` in it.
        whole: Whether all settings without a default must be there.

    Returns:
        The settings; "none" is None where that is allowed, and a number a text where only texts
        such as "2.1" are.

    Raises:
        ValueError: A setting is unknown or missing, or its value has the wrong type.
    """
    declared = _declared(declarations)
    checked = {}
    for name, value in settings.items():
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1)
            known = f"did you mean {near[0]}?" if near else f"it has {_list(declared)}"
            raise ValueError(f"the reward {reward} has no setting {shortened(name)[1:-1]}; {known}")
        checked[name] = _checked(value, declared[name].hint, key.format(reward=reward, name=name))
    missing = [name for name, entry in declared.items() if entry.is_needed and name not in checked]
    if whole and missing:
        raise ValueError(f"the reward {reward} needs the setting {missing[0]}, and has no default")
    return checked


def _declared(declarations: Sequence[Callable[..., Any]]) -> dict[str, _Declared]:
    """Name -> type and whether it is needed."""
    declared: dict[str, _Declared] = {}
    for maker in declarations:
        hints = get_type_hints(maker)
        for name, parameter in inspect.signature(maker).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            declared[name] = _Declared(hints.get(name, Any), parameter.default is parameter.empty)
    declared.pop("options", None)  # itself declared, and made of settings
    return declared


def _list(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"


def _checked(value: object, hint: Any, what: str) -> object:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value == "none" and NoneType in kinds:
        return None
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value in get_args(kind) and isinstance(value, str):
                return value
            if str(value) in get_args(kind) and not isinstance(value, bool):
                return str(value)  # version=2.0 is read as a number
        elif _is(value, kind):
            return value
    allowed = " or ".join(dict.fromkeys(map(_name, kinds)))
    raise ValueError(f"{what} is {_shown(value)}; it must be {allowed}{_hint(value, kinds)}")


def _is(value: object, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is int:
        return Limits(int, False, None).allow(value) and abs(value) <= _LARGEST_INTEGER  # type: ignore
    if get_origin(kind) is Sequence or kind is Sequence:
        return isinstance(value, (list, tuple)) and all(isinstance(v, (str, Path)) for v in value)
    if isinstance(value, str) and "\0" in value:
        return False
    return Limits(kind, kind is NoneType, None).allow(value)


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is Sequence or kind is Sequence:
        return "a list of texts"
    return _NAMES.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _shown(value: object) -> str:
    """As it was written: ``null``, not ``None``."""
    return "null" if value is None else shortened(value)


def _hint(value: object, kinds: Sequence[Any]) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f'; for a text, write "{value}" in quotes' if is_number and str in kinds else ""
