"""Everything a training run is determined by, in one frozen object.

Most parts are defined beside the code that uses them; this file composes them, and gives every
setting its name: the dotted key. A *patch* is a mapping of such keys to values. Configuration
files, presets, nodes, ``--set`` and the record of a run are patches, and ``TrainConfig.of`` is the
only way from one to the settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from numbers import Real
from typing import Annotated, get_type_hints

from ..lora.adapter import LoraConfig
from ..method.advantage import AdvantageConfig
from ..method.asking import AskConfig
from ..method.chunks import ChunkPlan
from ..method.dynamics import DynamicsCurve, PlanSource
from ..method.matching import ForwardConfig
from ..method.objective import ObjectiveConfig
from ..method.plan_text import read_plan
from ..method.preference import PreferenceConfig
from ..method.rules import SdeConfig
from ..method.schedule import TimeGrid
from ..method.solvers import SOLVERS
from ..method.windows import NOISE, WindowConfig
from ..settings.declared import EachOf, OneOf, Range, check_settings, limits_of, shortened
from .alarms import ALARMS, REWARD_FELL

__all__ = [
    "OPTIMIZERS",
    "PARTS",
    "OptimizerConfig",
    "RunSettings",
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

    name: Annotated[str, OneOf(OPTIMIZERS)] = "adamw"
    """adamw, or adamw8bit: its moments take 2 bytes for each parameter instead of 8
    (bitsandbytes; arXiv 2110.02861)."""
    fused: bool = False
    """Step all of AdamW in one kernel (``adamw`` only): faster where the adapter has many layers,
    other last bits."""
    learning_rate: Annotated[float, Range(1e-7, 1)] = 3e-4
    """How far each update moves every number of the adapter, at most."""
    weight_decay: Annotated[float, Range(0, 10)] = 1e-4
    """Paper, Table 8."""
    beta1: Annotated[float, Range(0, 0.999999)] = 0.9
    beta2: Annotated[float, Range(0, 0.999999)] = 0.99
    eps: Annotated[float, Range(1e-20, 1)] = 1e-10
    """Small, because a log-density averaged over dimensions has tiny gradients."""
    max_grad_norm: Annotated[float, Range(1e-6, 1e6)] = 1.0
    """Gradients are scaled down to this L2 norm."""
    updates_per_rollout: Annotated[int, Range(1, 1024)] = 2
    """Optimiser steps for each pass over the groups of one rollout; only the first is on-policy."""
    epochs: Annotated[int, Range(1, 64)] = 1
    """Passes over the groups of one rollout."""
    warmup_updates: Annotated[int, Range(0, 100_000)] = 0
    """Updates over which the learning rate rises linearly to its value."""
    ema_decay: Annotated[float | None, Range(1e-4, 0.99999)] = None
    """Decay of the average of the adapter that becomes the result; smaller in the first updates
    (``train/ema.py``). None keeps the weights of the last update."""
    recompute_log_p: bool | None = None
    """Compute the old log-densities again with the batch shapes of training, which costs one more
    forward pass. None does so where it matters: on accelerators, whose kernels may depend on the
    batch shape, when there is more than one update for each rollout."""

    def __post_init__(self) -> None:
        check_settings(self, "optimizer")
        if self.fused and self.name != "adamw":
            raise ValueError(f"optimizer.fused is true, but {self.name} has no fused kernel")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """What a run does when something goes wrong; no number depends on it."""

    reward_retries: Annotated[int, Range(0, 20)] = 6
    """When no picture of an iteration or of a measurement has a score: how often the same pictures
    are scored again before the run stops."""
    reward_wait: Annotated[float, Range(0, 600)] = 5.0
    """Seconds to wait before that; each further wait is twice as long, 600 at most. 6 waits from 5
    seconds are 5 minutes."""
    stop_on: Annotated[tuple[str, ...], EachOf(ALARMS)] = ("divergence",)
    """Alarms that stop the run with a checkpoint; the others are only shown. A run that diverged
    does not recover; one without a signal or with clipped updates may, and a collapse is better
    judged by eye. With all-masked, the run does not wait for a reward that fails. reward-fell is
    judged every ``evaluate_every`` iterations; with it, the run ends with the weights of the last
    measurement at which no reward had fallen."""

    def __post_init__(self) -> None:
        check_settings(self, "run")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run."""

    grid: TimeGrid
    """Noise levels of the rollout."""
    plan: ChunkPlan | None = None
    """Chunks of the trainable steps; None for an algorithm that has none."""
    algorithm: str = "chunk_grpo"
    """How to train: a name in ``algorithms/__init__.py``, or that of an algorithm that is handed to
    the training. It is made of these settings, and may refuse them, when the training begins."""
    sde: SdeConfig = field(default_factory=SdeConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    forward: ForwardConfig = field(default_factory=ForwardConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    run: RunSettings = field(default_factory=RunSettings)
    ask: AskConfig = field(default_factory=AskConfig)
    iterations: Annotated[int, Range(1, 1_000_000)] = 100
    """Rollouts in all."""
    prompts_per_iteration: Annotated[int, Range(1, 1024)] = 4
    """P, groups in one rollout."""
    group_size: Annotated[int, Range(2, 1024)] = 12
    """G, samples of one prompt, which are compared with each other. Paper: 12."""
    chunk_fraction: Annotated[float, Range(0.01, 1)] = 0.5
    """Part of the chunks (of the window, if there is one) each sample trains on; their number is
    rounded down, but is 1 at least. Paper: 0.5."""
    window: WindowConfig = field(default_factory=WindowConfig)
    """The chunks an iteration may train."""
    noise: Annotated[str, OneOf(NOISE)] = "all"
    """Steps of the rollout that take noise. all: every one. window: those of the window (MixGRPO).
    drawn: of each sample, those of the chunks it will train on. The others follow the ODE, which
    makes better pictures; advantages then judge the trained steps alone."""
    ode_solver: Annotated[str, OneOf(SOLVERS)] = "euler"
    """What steps without noise follow: euler, or dpm2, of second order."""
    share_initial_noise: bool = True
    """Start all samples of a group from the same noise. Official code: on."""
    batch_size: Annotated[int | None, Range(1, 1024)] = None
    """Samples in one call of the model; None sends a whole group at once. Halved when memory runs
    out (``train/batch_limit.py``)."""
    update_batch_size: Annotated[int | None, Range(1, 1024)] = None
    """Sample-steps in one call of the model with gradients, which take many times the memory of
    calls without; None leaves it to ``batch_size``."""
    score_while_sampling: bool = False
    """Decode and score a group in a thread while the next one is sampled: for rewards on another
    device or behind a network."""
    checkpoint_every: Annotated[int, Range(1, 1_000_000)] = 10
    """Iterations between checkpoints."""
    evaluate_every: Annotated[int, Range(0, 1_000_000)] = 0
    """Iterations between measurements on the held-out prompts while training goes on; 0 measures
    before and after only. With ``optimizer.ema_decay`` the weights themselves are measured, not
    their average."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Of everything that is drawn: the same seed gives the same numbers."""
    self_test: bool = True
    """Before the first update, compare derivatives with finite differences, and pictures and scores
    with new ones; see ``train/self_test/``."""

    def __post_init__(self) -> None:
        check_settings(self)
        if REWARD_FELL in self.run.stop_on and not self.evaluate_every:
            raise ValueError(
                f"run.stop_on names {REWARD_FELL}, which is seen when the held-out prompts are "
                "measured, but evaluate_every is 0; set it, to 5 for example"
            )
        keep = self.advantage.keep
        if keep is not None and 2 * keep > self.group_size:
            raise ValueError(
                f"advantage.keep is {keep}, but a group of group_size {self.group_size} has no "
                f"{keep} best and {keep} other worst samples; it must be at most half the group"
            )
        if self.optimizer.updates_per_rollout > self.prompts_per_iteration:
            raise ValueError(
                f"optimizer.updates_per_rollout is {self.optimizer.updates_per_rollout}, but "
                f"prompts_per_iteration is {self.prompts_per_iteration}; each update needs a group "
                "of its own: lower the former, or raise the latter"
            )

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
            part, dot, name = str(key).partition(".")
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
        built = {part: kind(**_tuples(kind, values_of[part])) for part, kind in PARTS.items()}
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


def _tuples(kind: type, values: Mapping[str, object]) -> dict[str, object]:
    """Lists, as JSON and TOML have them, as tuples where a setting is one."""
    limits = limits_of(kind)
    return {
        name: tuple(value) if limits[name].kind is tuple and isinstance(value, list) else value
        for name, value in values.items()
    }


def _grid(value: object) -> TimeGrid:
    if isinstance(value, TimeGrid):
        return value
    if not isinstance(value, (list, tuple)) or not all(map(_is_number, value)):
        raise ValueError(f"grid is {shortened(value)}; it must be a TimeGrid, or a list of sigmas")
    try:
        return TimeGrid.of(value)
    except ValueError as error:
        raise ValueError(f"grid is {shortened(value)}: {error}") from error


def _plan(value: object, grid: TimeGrid, curve: DynamicsCurve | None) -> ChunkPlan | None:
    if value is None or isinstance(value, ChunkPlan):
        return value
    try:
        if isinstance(value, str):
            return read_plan(value, grid.trainable_steps, curve)
        if isinstance(value, Mapping):
            return _plan_of(value)
    except ValueError as error:
        raise ValueError(f"plan is {shortened(value)}: {error}") from error
    raise ValueError(
        f"plan is {shortened(value)}; it must be a ChunkPlan, or text such as '2, 3, 4, 7'"
    )


def _plan_of(value: Mapping[str, object]) -> ChunkPlan:
    for key in value:
        _check_known(key, ChunkPlan, "plan.")
    if "sizes" not in value:
        raise ValueError("plan.sizes is missing; it has no default")
    source = value.get("source")
    if source is not None:
        if not isinstance(source, Mapping):
            raise ValueError(f"plan.source is {shortened(source)}; it must be a mapping, or None")
        for key in source:
            _check_known(key, PlanSource, "plan.source.")
        if missing := [name for name in limits_of(PlanSource) if name not in source]:
            raise ValueError(f"plan.source.{missing[0]} is missing")
    return ChunkPlan.from_json(dict(value))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_known(name: object, kind: type, prefix: str) -> None:
    """Refuse a name that is not a field of a class."""
    names = [item.name for item in fields(kind)]
    if not isinstance(name, str):
        raise ValueError(f"{shortened(name)} is no key of settings; keys are texts")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(names)}"
        raise ValueError(f"unknown setting {prefix}{name}{hint}")
