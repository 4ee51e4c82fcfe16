"""Patches: what travels through the settings socket, a dotted key of ``TrainConfig`` -> its value.

A patch holds the keys that somebody set, and no others. Two keys are no setting of the training:
``preset``, the name of the preset that the patch began with, and the settings of the MODEL
(:class:`ModelSettings`, under ``model.``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, NamedTuple

from ..chunk_grpo_core.method.windows import WindowConfig, check_noise
from ..chunk_grpo_core.presets import PRESETS, preset_values
from ..chunk_grpo_core.settings.declared import Limits, limits_of
from ..chunk_grpo_core.train.config import PARTS, TrainConfig, setting_keys

__all__ = [
    "PRESET",
    "InForce",
    "ModelSettings",
    "Patch",
    "check_patch",
    "declared",
    "in_force",
    "is_training_setting",
    "model_settings",
    "plain",
    "span",
]

Patch = Mapping[str, object]

PRESET = "preset"
_MODEL = "model."


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Settings of the MODEL, which change no number of the training."""

    activation_offloading: bool = False
    """During updates, keep what goes into the blocks in system memory until it is needed."""


class Declared(NamedTuple):
    """A setting as the dataclass that owns it declares it."""

    limits: Limits
    default: Any


class InForce(NamedTuple):
    """A setting as a training would get it."""

    key: str
    value: object
    source: str
    """"this node", the name of a preset, "settings that come in", or "default"."""


def declared(key: str) -> Declared:
    """Look up a dotted key.

    Raises:
        KeyError: There is no such setting.
    """
    part, _, name = key.rpartition(".")
    owner = ModelSettings if part == _MODEL[:-1] else PARTS[part] if part else TrainConfig
    defaults = {field.name: field.default for field in fields(owner)}
    return Declared(limits_of(owner)[name], defaults[name])


def span(key: str) -> dict[str, Any]:
    """``min`` and ``max`` of the input that sets a number."""
    limits = declared(key).limits
    bounds = limits.range
    return {"min": limits.kind(bounds.least), "max": limits.kind(bounds.most)}


def plain(value: object) -> str:
    """Write a value as the inputs of the nodes take it: on, off, none, 0.00005."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return format(Decimal(f"{value:.10g}"), "f") if isinstance(value, float) else str(value)


def is_training_setting(key: str) -> bool:
    """Whether a key of a patch is one of ``TrainConfig``."""
    return key != PRESET and not key.startswith(_MODEL)


def model_settings(patch: Patch) -> ModelSettings:
    """The settings of the MODEL in a patch.

    Raises:
        ValueError: The patch has a key that nothing knows.
    """
    _check_keys(patch)
    return ModelSettings(
        **{
            key.removeprefix(_MODEL): value
            for key, value in patch.items()
            if key.startswith(_MODEL)
        }  # type: ignore[arg-type]
    )


def check_patch(patch: Patch) -> None:
    """Refuse what no training takes, whatever its noise levels, plan and group size.

    Raises:
        ValueError: A key is unknown, a value is out of range, or two contradict each other.
    """
    _check_keys(patch)
    settings = {key: value for key, value in patch.items() if is_training_setting(key)}
    tables = {
        part: owner(**{key: settings[f"{part}.{key}"] for key in _names(owner, part, settings)})
        for part, owner in PARTS.items()
    }
    window = tables["window"]
    assert isinstance(window, WindowConfig)
    noise, ode_solver = (
        settings.get(key, declared(key).default) for key in ("noise", "ode_solver")
    )
    check_noise(str(noise), str(ode_solver), window)


def in_force(keys: Iterable[str], set_here: Patch, incoming: Patch) -> list[InForce]:
    """Say of each key which value a training would get, and where it comes from.

    Args:
        keys: What to look up.
        set_here: The keys that this node sets.
        incoming: The patch that it builds on.
    """
    preset = str(incoming.get(PRESET, ""))
    stated = preset_values(preset) if preset in PRESETS else {}
    lines = []
    for key in keys:
        if key in set_here:
            value, source = set_here[key], "this node"
        elif key in incoming:
            value = incoming[key]
            is_stated = key in stated and stated[key] == value
            source = preset if is_stated else "settings that come in"
        else:
            value, source = declared(key).default, "default"
        lines.append(InForce(key, value, source))
    return lines


def _names(owner: type, part: str, settings: Patch) -> Iterator[str]:
    return (field.name for field in fields(owner) if f"{part}.{field.name}" in settings)


def _check_keys(patch: Patch) -> None:
    of_model = (f"{_MODEL}{field.name}" for field in fields(ModelSettings))
    valid = [PRESET, *of_model, *setting_keys()]
    for key in patch:
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"settings holds the unknown key {key!r}{hint}")
