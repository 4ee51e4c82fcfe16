"""What a preset is: settings of a run, each with the place it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..method.schedule import TimeGrid

__all__ = [
    "NOT_IN_THE_SOURCE",
    "Preset",
    "Setting",
    "complete",
    "forward_form",
    "settings",
    "shown",
]


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it comes from."""

    key: str
    """Dotted key of ``TrainConfig``, such as ``optimizer.learning_rate``."""
    value: object
    """What ``TrainConfig`` takes there; a plan as text, since it may depend on a curve."""
    source: str
    """File and flag, or section of the paper; "Ours: " and the reason for our own choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published recipe, as far as the settings of a run can say it."""

    name: str
    title: str
    """Method, paper, and the file that most values come from."""
    values: tuple[Setting, ...]
    departures: tuple[str, ...]
    """What the source has and this loop does differently, or leaves to the model."""
    shorter_runs: str
    """What changes with ``iterations`` besides the length: averages, windows, warm-up."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Departures, and what happens in a run of fewer iterations."""
        return (*self.departures, self.shorter_runs)


NOT_IN_THE_SOURCE = "off: the recipe does not use it"

_OFF: dict[str, object] = {
    "window.kind": "all",
    "noise": "all",
    "ode_solver": "euler",
    "advantage.keep": None,
    "advantage.combine": "rewards",
    "objective.trust_region": "clip",
    "objective.kl_old": 0.0,
    "objective.kl_ref": 0.0,
    "objective.ratio_norm": False,
    "objective.step_weights": "equal",
    "optimizer.ema_decay": None,
    "lora.rs": False,
}

_ALGORITHM = Setting(
    "algorithm", "chunk_grpo", "Ours: step-level methods are Chunk-GRPO with one step per chunk"
)


def settings(source: str, values: Mapping[str, tuple[object, str]]) -> tuple[Setting, ...]:
    """List settings of one file: key -> (value, where in the file)."""
    return tuple(
        Setting(key, value, f"{source}: {place}") for key, (value, place) in values.items()
    )


def complete(*groups: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """Join parts, name the algorithm, and switch off, by name, every method they do not mention."""
    stated = (_ALGORITHM, *(setting for group in groups for setting in group))
    stated_keys = {setting.key for setting in stated}
    off = (Setting(k, v, NOT_IN_THE_SOURCE) for k, v in _OFF.items() if k not in stated_keys)
    return (*stated, *off)


def forward_form(*groups: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """Join parts, name the forward form, and say that there is no plan and no old decay."""
    stated = (
        Setting("algorithm", "forward", "Ours: it trains on finished pictures of any sampler"),
        Setting("plan", None, "no step of the rollout is trained"),
        *(setting for group in groups for setting in group),
    )
    stated_keys = {setting.key for setting in stated}
    off: dict[str, object] = {"advantage.keep": None, "optimizer.ema_decay": None, "lora.rs": False}
    return (
        *stated,
        *(Setting(k, v, NOT_IN_THE_SOURCE) for k, v in off.items() if k not in stated_keys),
    )


def shown(value: object) -> str:
    """Write a value as a reader would."""
    if isinstance(value, TimeGrid):
        first = ", ".join(f"{sigma:.3g}" for sigma in value.sigmas[:3])
        return f"{value.steps} steps: {first} .. {value.sigmas[-2]:.3g}, 0"
    return f"{value:g}" if isinstance(value, float) else str(value)
