"""Inputs of the settings nodes; a table of them makes a node (``settings_node.py``).

Every input has a value that inherits, and starts with it: ``inherit`` of a choice, -1 of a number,
an empty text. A list is written with commas. Type, range, choices and default come from the
setting itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from comfy_api.latest import io

from ..chunk_grpo_core.settings.declared import Limits, OneOf
from .patch import declared, plain
from .types import rare

__all__ = ["INHERIT", "KEEP", "SettingInput", "inputs_of"]

INHERIT = "inherit"
KEEP = -1
"""The values of choices and of numbers that inherit."""

_NO_WORDS = "none"
"""What stands for an empty list."""
_BOOLEANS = {"on": True, "off": False}


@dataclass(frozen=True)
class SettingInput:
    """One input of a settings node."""

    name: str
    key: str
    """The dotted key that it sets."""
    tooltip: str
    _: KW_ONLY
    also: str = ""
    """A second key that gets the same value."""
    step: float = 1
    """Of a number: what the arrows add, and the last digit that is kept."""
    is_rare: bool = False
    """Shown among the advanced inputs, where ComfyUI has those."""

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that it sets."""
        return (self.key, self.also) if self.also else (self.key,)

    @property
    def limits(self) -> Limits:
        """What the setting may hold; None, if it may, is ``auto`` of a choice, 0 of a number."""
        return declared(self.key).limits

    @property
    def options(self) -> dict[str, object]:
        """What can be chosen -> value of the setting; empty if it is no choice."""
        if self.limits.kind is bool:
            return {**({"auto": None} if self.limits.can_be_none else {}), **_BOOLEANS}
        bounds = self.limits.bounds
        return {name: name for name in bounds.choices} if isinstance(bounds, OneOf) else {}

    def input(self) -> Any:
        """The input in the schema of the node."""
        if self.options:
            made = io.Combo.Input(
                self.name,
                options=[INHERIT, *self.options],
                default=INHERIT,
                optional=True,
                tooltip=self._tooltip(INHERIT),
            )
        elif self.limits.kind in (str, tuple):
            made = io.String.Input(
                self.name, default="", optional=True, tooltip=self._tooltip("Empty")
            )
        elif self.limits.kind is int:
            made = io.Int.Input(
                self.name,
                default=KEEP,
                min=KEEP,
                max=int(self.limits.range.most),
                optional=True,
                tooltip=self._tooltip(KEEP),
            )
        else:
            made = io.Float.Input(
                self.name,
                default=float(KEEP),
                min=float(KEEP),
                max=float(self.limits.range.most),
                step=self.step,
                round=self.step,
                optional=True,
                tooltip=self._tooltip(KEEP),
            )
        return rare(made) if self.is_rare else made

    def patch(self, given: Any = None) -> dict[str, object]:
        """The keys that it sets when it is given a value; none when that inherits or is missing.

        Raises:
            ValueError: The value is no choice of the input, or out of its range.
        """
        if given in (None, INHERIT, KEEP, ""):
            return {}
        if self.options:
            if not isinstance(given, str) or given not in self.options:
                choices = ", ".join((INHERIT, *self.options))
                raise ValueError(f"{self.name} is {given!r}; it must be one of {choices}")
            value = self.options[given]
        elif self.limits.can_be_none and given == 0:
            value = None
        elif self.limits.kind is tuple:
            value = tuple(word for word in _words(given) if word != _NO_WORDS)
            if not self.limits.allow(value):
                raise ValueError(
                    f"{self.name} is {given!r}; it must be {self.limits.allowed}, with commas "
                    f"between them, or {_NO_WORDS}"
                )
        elif self.limits.allow(given):
            value = self.limits.kind(given)
        else:
            raise ValueError(
                f"{self.name} is {plain(given)}; it must be {self.limits.allowed}, or "
                f"{KEEP} for that of the settings that come in"
            )
        return dict.fromkeys(self.keys, value)

    def _tooltip(self, inherits: object) -> str:
        default = self.shown(declared(self.key).default)
        return f"{self.tooltip}\n{inherits}: as the settings that come in; by default {default}."

    def shown(self, value: object) -> str:
        """A value of the setting, as the input takes it."""
        if value is None:
            return "auto" if self.options else "0"
        if isinstance(value, tuple):
            return ", ".join(map(str, value)) or _NO_WORDS
        return plain(value)


def _words(text: object) -> list[str]:
    return [word for word in str(text).replace(",", " ").split() if word]


def inputs_of(table: Sequence[SettingInput]) -> list[Any]:
    """The inputs in the schema of a node."""
    return [setting.input() for setting in table]
