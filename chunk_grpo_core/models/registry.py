"""All families of models, and the one that a configuration chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..settings.declared import shortened
from .family import Family, ModelTable
from .flux.family import FAMILY as FLUX
from .tiny.family import FAMILY as TINY

__all__ = ["FAMILIES", "ChosenModel", "family_named"]

FAMILIES: dict[str, Family[Any]] = {family.name: family for family in (TINY, FLUX)}
"""Value of ``model.type`` -> family."""


def family_named(name: object) -> Family[Any]:
    """Look a family up.

    Raises:
        ValueError: There is none of this name.
    """
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
