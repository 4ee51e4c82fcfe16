"""All families of models, and the one that a configuration chose."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..settings.declared import shortened
from .family import Family, ModelTable

__all__ = ["FAMILIES", "ChosenModel", "family_named"]

_FAMILIES = (
    "tiny.family:FAMILY",
    "flux.family:FAMILY",
    "z_image:FAMILY",
    "sd3:FAMILY",
    "flux2:DEV",
    "flux2:KLEIN",
    "qwen_image:FIRST",
    "qwen_image:SECOND",
    "chroma:FAMILY",
    "krea2:FAMILY",
)
"""Module beside this one, and what it exports."""


def _exported(place: str) -> Family[Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(f".{module}", __package__), name)


FAMILIES: dict[str, Family[Any]] = {one.name: one for one in map(_exported, _FAMILIES)}
"""Value of ``model.type`` -> family."""


_REFUSED = {
    "hidream": "diffusers runs HiDream's experts without gradients where a model is evaluated, so "
    "that gradients through it are wrong, and says nothing",
    "flux3": "diffusers has no pipeline of FLUX.3 in one class",
}
"""Families that people will ask for -> why they are not here."""


def family_named(name: object) -> Family[Any]:
    """Look a family up.

    Raises:
        ValueError: There is none of this name.
    """
    if isinstance(name, str) and name in _REFUSED:
        raise ValueError(f"model.type is {name}, which cannot be trained here: {_REFUSED[name]}")
    if not isinstance(name, str) or name not in FAMILIES:
        families = ", ".join(FAMILIES)
        raise ValueError(f"model.type is {shortened(name)}; it must be one of {families}")
    return FAMILIES[name]


@dataclass(frozen=True, kw_only=True)
class ChosenModel:
    """A family by name, and what was set for it. It can be sent to other processes."""

    type: str
    table: ModelTable

    @property
    def family(self) -> Family[Any]:
        """The family of this name."""
        return family_named(self.type)
