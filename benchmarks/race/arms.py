"""PROTOCOL.md in code: the recipes that race, as settings.

An arm has a base (a patch of ``TrainConfig``) and candidates, patches on top of it, of which one
screening run each chooses the one that races.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.tiny.model import SHIFT
from chunk_grpo_core.presets import preset_values
from chunk_grpo_core.train.config import TrainConfig

__all__ = ["ARMS", "SCREENING_SEED", "SCREENING_UNITS", "Arm", "config_of"]

SCREENING_SEED, SCREENING_UNITS = 100, 9_000
Patch = Mapping[str, object]


@dataclass(frozen=True)
class Arm:
    """One recipe, and the variants of it that are screened."""

    what: str
    base: Patch
    candidates: tuple[Patch, ...] = ({},)
    """One needs no screening."""
    units: int = 24_000
    """Length of a final run."""


def _grid(steps: int) -> dict[str, object]:
    return {"grid": shifted_grid(steps, SHIFT)}


def _preset(name: str, **overrides: object) -> dict[str, object]:
    return {**preset_values(name), **overrides}


_TINY: Patch = {
    "lora.rank": 16,
    "lora.alpha": 32.0,
    "prompts_per_iteration": 4,
    "group_size": 12,
    "optimizer.learning_rate": 1e-3,
}
"""Size of the adapter and of a rollout, as in the demo."""

_STEP_WINDOW: Patch = {
    **_TINY,
    "objective.clip_low": 1e-4,
    "objective.clip_high": 1e-4,
    "plan": "step",
    "window.kind": "fixed",
    "window.chunks": 1,
    "noise": "window",
    "chunk_fraction": 1.0,
}
"""Noise in the first step alone, and that step trained; the others follow the ODE."""

_FORWARD: Patch = {
    **_TINY,
    **_grid(5),
    "algorithm": "forward",
    "plan": None,
    "sde.rule": "ode",
    "share_initial_noise": False,
    "optimizer.learning_rate": 2e-3,
    "forward.times": 2,
    "forward.kl_ref": 0.3,
}

_RATES = tuple({"optimizer.learning_rate": rate} for rate in (3e-4, 1e-3, 2e-3, 3e-3))
_LR, _LEASH, _KEEP = "optimizer.learning_rate", "objective.kl_ref", "advantage.keep"

ARMS: dict[str, Arm] = {
    "demo": Arm(
        "`chunk-grpo demo` of 29 November 2026",
        {
            **_TINY,
            **_grid(9),
            "plan": {"sizes": [1, 2, 2, 3], "weights": [0.4, 0.35, 0.2, 0.05]},
            "objective.clip_low": 1e-4,
            "objective.clip_high": 1e-4,
        },
        units=72_000,
    ),
    "gcpo-script": Arm(
        "the preset, scaled: 4 prompts instead of 16, the demo's LoRA, gradient norm 1",
        _preset(
            "gcpo-script",
            **_TINY,
            **{"optimizer.max_grad_norm": 1.0},
        ),
        _RATES,
    ),
    "flow-grpo": Arm(
        "the preset, scaled: 4 prompts instead of 48, the demo's LoRA and shift, no average",
        _preset(
            "flow-grpo",
            **{**_TINY, "group_size": 24},
            **_grid(6),
            **{"optimizer.ema_decay": None},
        ),
        _RATES,
    ),
    "few-step": Arm(
        "GRPO, noise in the first step alone, no leash",
        _STEP_WINDOW,
        (
            {**_grid(4)},
            {**_grid(4), _LR: 5e-4},
            {**_grid(6)},
            {**_grid(6), "window.kind": "random"},
        ),
    ),
    "few-step-leash": Arm(
        "the same with a leash",
        {**_STEP_WINDOW, _LEASH: 0.003},
        (
            {**_grid(4)},
            {**_grid(4), _LR: 2e-3},
            {**_grid(4), _LEASH: 0.006},
            {**_grid(6)},
        ),
    ),
    "first-chunk": Arm(
        "Chunk-GRPO, the first chunks alone trained and noisy, with a leash",
        {**_STEP_WINDOW, _LEASH: 0.003},
        (
            {**_grid(6), "plan": "2, 3"},
            {**_grid(6), "plan": "1, 2, 2", "window.chunks": 2, "chunk_fraction": 0.5},
            {**_grid(6), "plan": "2, 3", _LR: 2e-3},
            {**_grid(9), "plan": "2, 2, 4"},
        ),
    ),
    "best-worst": Arm(
        "few-step GRPO that trains the best and the worst of a larger group",
        {**_STEP_WINDOW, **_grid(4), "group_size": 24},
        (
            {_KEEP: 4},
            {_KEEP: 4, _LR: 5e-4},
            {_KEEP: 6},
            {_KEEP: 4, _LEASH: 0.003},
        ),
    ),
    "awm": Arm(
        "forward form, advantage-weighted matching",
        {**_FORWARD, "forward.objective": "awm"},
        (
            {},
            {_LR: 1e-3},
            {**_grid(4)},
            {"forward.time_distribution": "uniform"},
        ),
    ),
    "nft": Arm(
        "forward form, DiffusionNFT",
        {**_FORWARD, "forward.objective": "nft"},
        (
            {},
            {_LR: 1e-3},
            {"forward.old": "average"},
            {"forward.beta": 0.1},
        ),
    ),
    "elbo": Arm(
        "forward form, clipped ratio of likelihood estimates",
        {**_FORWARD, "forward.objective": "elbo"},
        (
            {},
            {_LR: 1e-3},
            {**_grid(4)},
            {"optimizer.updates_per_rollout": 4},
        ),
    ),
    "awm-best-worst": Arm(
        "awm that trains the best and the worst of a larger group",
        {**_FORWARD, "forward.objective": "awm", "group_size": 24},
        (
            {_KEEP: 4},
            {_KEEP: 6},
            {_KEEP: 4, _LR: 1e-3},
            {_KEEP: 4, **_grid(4)},
        ),
    ),
}


def config_of(arm: Arm, candidate: int, seed: int) -> TrainConfig:
    """All settings of a run, which ends by its units and not by its iterations.

    Raises:
        ValueError: A setting is unknown or out of range.
    """
    of_all: Patch = {"seed": seed, "iterations": 100_000, "run.stop_on": ()}
    return TrainConfig.of({**arm.base, **arm.candidates[candidate], **of_all})
