"""Everything a training run is determined by, in one frozen object.

Most parts are defined beside the code that uses them; this file composes them, and gives every
setting its name: the dotted key. A *patch* is a mapping of such keys to values. Configuration
files, presets, nodes, ``--set`` and the record of a run are patches, and ``TrainConfig.of`` is the
only way from one to the settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import get_type_hints

from ..algorithms import algorithm_of
from ..lora.adapter import LoraConfig
from ..method.advantage import AdvantageConfig
from ..method.chunks import ChunkPlan
from ..method.dynamics import DynamicsCurve, PlanSource
from ..method.objective import ObjectiveConfig
from ..method.plan_text import read_plan
from ..method.rules import SdeConfig
from ..method.schedule import TimeGrid
from ..method.windows import WindowConfig

__all__ = [
    "OPTIMIZERS",
    "PARTS",
    "OptimizerConfig",
    "TrainConfig",
    "defaults",
    "is_setting",
    "setting_keys",
]

OPTIMIZERS = ("adamw", "adamw8bit")
"""Values of ``optimizer.name``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW, and how often it steps."""

    name: str = "adamw"
    """adamw, or adamw8bit: its moments take 2 bytes for each parameter instead of 8
    (bitsandbytes; arXiv 2110.02861)."""
    fused: bool = False
    """Step all of AdamW in one kernel (``adamw`` only): faster where the adapter has many layers,
    other last bits."""
    learning_rate: float = 3e-4
    """Above 0."""
    weight_decay: float = 1e-4
    """0 or more. Paper, Table 8."""
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-10
    """Small, because a log-density averaged over dimensions has tiny gradients."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm, above 0."""
    updates_per_rollout: int = 2
    """Optimiser steps for each pass over the groups of one rollout; only the first is on-policy."""
    epochs: int = 1
    """Passes over the groups of one rollout."""
    warmup_updates: int = 0
    """Updates over which the learning rate rises linearly to its value, 0 or more."""
    ema_decay: float | None = None
    """Decay of the average of the adapter that becomes the result, in (0, 1); smaller in the first
    updates (``train/ema.py``). None keeps the weights of the last update."""
    recompute_log_p: bool | None = None
    """Compute the old log-densities again with the batch shapes of training, which costs one more
    forward pass. None does so where it matters: on accelerators, whose kernels may depend on the
    batch shape, when there is more than one update for each rollout."""

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            choices = ", ".join(OPTIMIZERS)
            raise ValueError(f"optimizer.name is {self.name!r}; it must be one of {choices}")
        if self.fused and self.name != "adamw":
            raise ValueError(f"optimizer.fused is true, but {self.name} has no fused kernel")
        for name in ("learning_rate", "eps", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("updates_per_rollout", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be in [0, 1)")
        if self.warmup_updates < 0:
            raise ValueError(
                f"optimizer.warmup_updates is {self.warmup_updates}; it must be 0 or more"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(
                f"optimizer.ema_decay is {self.ema_decay}; it must be in (0, 1), or None"
            )
        if not self.weight_decay >= 0:
            raise ValueError(f"optimizer.weight_decay is {self.weight_decay}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run."""

    grid: TimeGrid
    """Noise levels of the rollout."""
    plan: ChunkPlan | None = None
    """Chunks of the trainable steps; None for an algorithm that has none."""
    algorithm: str = "chunk_grpo"
    """How to train; one of the names in ``algorithms/__init__.py``."""
    sde: SdeConfig = field(default_factory=SdeConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    iterations: int = 100
    """Rollouts in all, 1 or more."""
    prompts_per_iteration: int = 4
    """P, groups in one rollout, 1 or more."""
    group_size: int = 12
    """G, samples of one prompt, 2 or more. Paper: 12."""
    chunk_fraction: float = 0.5
    """Part of the chunks (of the window, if there is one) each sample trains on, in (0, 1]. Paper:
    0.5."""
    window: WindowConfig = field(default_factory=WindowConfig)
    """The chunks an iteration may train."""
    noise: str = "all"
    """Steps of the rollout that take noise. all: every one. window: those of the window (MixGRPO).
    drawn: of each sample, those of the chunks it will train on. The others follow the ODE, which
    makes better pictures; advantages then judge the trained steps alone."""
    ode_solver: str = "euler"
    """What steps without noise follow: euler, or dpm2, of second order."""
    share_initial_noise: bool = True
    """Start all samples of a group from the same noise. Official code: on."""
    batch_size: int | None = None
    """Samples in one call of the model; None sends a whole group at once. Halved when memory runs
    out (``train/batch_limit.py``)."""
    update_batch_size: int | None = None
    """Sample-steps in one call of the model with gradients, which take many times the memory of
    calls without; None leaves it to ``batch_size``."""
    score_while_sampling: bool = False
    """Decode and score a group in a thread while the next one is sampled: for rewards on another
    device or behind a network."""
    checkpoint_every: int = 10
    """Iterations between checkpoints, 1 or more."""
    evaluate_every: int = 0
    """Iterations between measurements on the held-out prompts while training goes on; 0 measures
    before and after only. With ``optimizer.ema_decay`` the weights themselves are measured, not
    their average."""
    seed: int = 0
    self_test: bool = True
    """Before the first update, compare one derivative with a finite difference; see
    ``train/self_test.py``."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}; advantages compare samples of one prompt, "
                "so it must be 2 or more (12 in the paper)"
            )
        keep = self.advantage.keep
        if keep is not None and 2 * keep > self.group_size:
            raise ValueError(
                f"advantage.keep is {keep}, but a group of group_size {self.group_size} has no "
                f"{keep} best and {keep} other worst samples; it must be at most half the group"
            )
        for name in ("iterations", "prompts_per_iteration", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.evaluate_every < 0:
            raise ValueError(f"evaluate_every is {self.evaluate_every}; it must be 0 or more")
        for name in ("batch_size", "update_batch_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; it must be 1 or more, or None")
        if self.optimizer.updates_per_rollout > self.prompts_per_iteration:
            raise ValueError(
                f"updates_per_rollout is {self.optimizer.updates_per_rollout}, but there are only "
                f"{self.prompts_per_iteration} prompts per iteration; each update needs a group"
            )
        algorithm_of(self)  # refuses what does not suit it

    def flat(self) -> dict[str, object]:
        """Every setting by its dotted key, as plain values that JSON can hold.

        ``grid`` is the list of its sigmas, ``plan`` a dictionary of ``sizes``, ``weights`` and
        ``source``. :meth:`of` builds equal settings from it, also after it went through JSON.
        """
        settings: dict[str, object] = {}
        for name, value in asdict(self).items():
            if name in PARTS:
                settings |= {f"{name}.{key}": item for key, item in value.items()}
            else:
                settings[name] = value
        return settings | {"grid": list(self.grid.sigmas)}

    @classmethod
    def of(cls, patch: Mapping[str, object], curve: DynamicsCurve | None = None) -> TrainConfig:
        """Build settings from a patch: dotted keys, and values for them.

        Args:
            patch: ``grid`` (a ``TimeGrid``, or its sigmas), ``plan`` (a ``ChunkPlan``, text as
                :func:`~chunk_grpo_core.method.plan_text.read_plan` takes it, what :meth:`flat`
                gives, or None), and all that differs from the defaults, such as
                ``{"iterations": 20, "optimizer.learning_rate": 1e-4}``.
            curve: For a plan that is read off one.

        Raises:
            ValueError: A key is unknown (the message names the nearest known one) or missing, a
                value is out of range, or the plan needs a curve.
        """
        values_of: dict[str, dict[str, object]] = {part: {} for part in PARTS}
        plain: dict[str, object] = {}
        for key, value in patch.items():
            part, dot, name = key.partition(".")
            if part in PARTS and not dot:
                raise ValueError(f"{key} has parts; override one of them, such as {key}.<name>")
            if part in PARTS:
                _check_known(name, PARTS[part], f"{part}.")
                values_of[part][name] = value
            else:
                _check_known(key, cls, "")
                plain[key] = value
        if "grid" not in plain:
            raise ValueError("grid is missing; it has no default")
        grid = _grid(plain["grid"])
        plan = _plan(plain.get("plan"), grid, curve)
        built = {part: kind(**values_of[part]) for part, kind in PARTS.items()}
        return cls(**{**plain, **built, "grid": grid, "plan": plan})  # type: ignore[arg-type]


PARTS: dict[str, type] = {
    name: kind
    for name, kind in get_type_hints(TrainConfig).items()
    if isinstance(kind, type) and is_dataclass(kind) and name not in ("grid", "plan")
}
"""Settings whose keys have a dot: ``sde``, ``optimizer``, ... -> class of the part."""


@cache
def setting_keys() -> tuple[str, ...]:
    """The dotted keys of all settings; ``grid`` and ``plan`` are settings whole."""
    plain = [item.name for item in fields(TrainConfig) if item.name not in PARTS]
    dotted = [f"{part}.{item.name}" for part, kind in PARTS.items() for item in fields(kind)]
    return (*plain, *dotted)


def is_setting(key: str) -> bool:
    """Whether there is a setting with this dotted key."""
    return key in setting_keys()


def defaults() -> dict[str, object]:
    """Dotted key -> default, of all settings that have one."""
    values = dict(_defaults_of(TrainConfig))
    for part, kind in PARTS.items():
        values |= {f"{part}.{key}": value for key, value in _defaults_of(kind)}
    return values


def _defaults_of(kind: type) -> list[tuple[str, object]]:
    return [(item.name, item.default) for item in fields(kind) if item.default is not MISSING]


def _grid(value: object) -> TimeGrid:
    if isinstance(value, TimeGrid):
        return value
    if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)):
        return TimeGrid.of(value)
    raise ValueError(f"grid is {value!r}; it must be a TimeGrid, or a list of sigmas")


def _plan(value: object, grid: TimeGrid, curve: DynamicsCurve | None) -> ChunkPlan | None:
    if value is None or isinstance(value, ChunkPlan):
        return value
    if isinstance(value, str):
        return read_plan(value, grid.trainable_steps, curve)
    if not isinstance(value, Mapping):
        raise ValueError(f"plan is {value!r}; it must be a ChunkPlan, or text such as '2, 3, 4, 7'")
    for key in value:
        _check_known(key, ChunkPlan, "plan.")
    for key in value.get("source") or ():
        _check_known(key, PlanSource, "plan.source.")
    return ChunkPlan.from_json(dict(value))


def _check_known(name: str, kind: type, prefix: str) -> None:
    """Refuse a name that is not a field of a class."""
    names = [item.name for item in fields(kind)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(names)}"
        raise ValueError(f"unknown setting {prefix}{name}{hint}")
