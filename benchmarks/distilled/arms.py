"""PROTOCOL.md in code: the roads that are compared, as settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.tiny.model import SHIFT
from chunk_grpo_core.presets import preset_values
from chunk_grpo_core.train.config import TrainConfig

from .distil import PIECES

__all__ = ["ARMS", "Arm", "config_of"]

Patch = Mapping[str, object]

_TINY: Patch = {
    "lora.rank": 16,
    "lora.alpha": 32.0,
    "prompts_per_iteration": 4,
    "group_size": 12,
    "objective.clip_low": 1e-4,
    "objective.clip_high": 1e-4,
}
"""Size of the adapter and of a rollout, and the clip range, as in `chunk-grpo demo`."""

_OWN_STEPS: Patch = {"grid": shifted_grid(PIECES, SHIFT)}
"""The steps that the student was made for."""


@dataclass(frozen=True)
class Arm:
    """One road."""

    what: str
    settings: Patch
    units: int
    """Length of a run."""


def _without_clip(patch: Patch) -> dict[str, object]:
    return {key: value for key, value in patch.items() if not key.startswith("objective.")}


ARMS: dict[str, Arm] = {
    "forward": Arm(
        "forward form, pictures drawn with the model's own 4 steps",
        {
            **_without_clip(_TINY),
            **_OWN_STEPS,
            "algorithm": "forward",
            "sde.rule": "ode",
            "share_initial_noise": False,
            "forward.times": 2,
            "forward.kl_ref": 0.3,
            "optimizer.learning_rate": 2e-3,
        },
        units=6_000,
    ),
    "few-step": Arm(
        "GRPO with the model's own 4 steps, noise in the first alone, leash",
        {
            **_TINY,
            **_OWN_STEPS,
            "plan": "step",
            "window.kind": "fixed",
            "window.chunks": 1,
            "noise": "window",
            "chunk_fraction": 1.0,
            "objective.kl_ref": 0.003,
            "optimizer.learning_rate": 1e-3,
        },
        units=6_000,
    ),
    "standard": Arm(
        "the preset safe-lora of 29 November 2026: 17 steps, noise in the first 9",
        {
            **preset_values("safe-lora"),
            "grid": shifted_grid(17, SHIFT),
            "plan": "2, 3, 4, 7",
            "window.chunks": 3,
            **_TINY,
            "objective.kl_ref": 1e-3,
            "batch_size": None,
            "optimizer.learning_rate": 1e-3,
            "optimizer.ema_decay": None,
            "optimizer.warmup_updates": 0,
        },
        units=12_000,
    ),
}


def config_of(arm: Arm, seed: int) -> TrainConfig:
    """All settings of a run, which ends by its units and not by its iterations.

    Raises:
        ValueError: A setting is unknown or out of range.
    """
    return TrainConfig.of({**arm.settings, "seed": seed, "iterations": 100_000, "run.stop_on": ()})
