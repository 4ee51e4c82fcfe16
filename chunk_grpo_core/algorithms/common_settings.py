"""The settings that every algorithm reads; a TrainConfig has them and says what they mean."""

from __future__ import annotations

from typing import Protocol

from ..method.chunks import ChunkPlan
from ..method.matching import ForwardConfig
from ..method.objective import ObjectiveConfig
from ..method.rules import SdeConfig
from ..method.schedule import TimeGrid
from ..method.windows import WindowConfig

__all__ = ["CommonSettings", "OptimizerSettings"]


class OptimizerSettings(Protocol):
    """What algorithms ask of an OptimizerConfig."""

    @property
    def updates_per_rollout(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def recompute_log_p(self) -> bool | None: ...


class CommonSettings(Protocol):
    """Those of the others are read, too: to refuse what would have no effect."""

    @property
    def grid(self) -> TimeGrid: ...
    @property
    def plan(self) -> ChunkPlan | None: ...
    @property
    def sde(self) -> SdeConfig: ...
    @property
    def objective(self) -> ObjectiveConfig: ...
    @property
    def forward(self) -> ForwardConfig: ...
    @property
    def optimizer(self) -> OptimizerSettings: ...
    @property
    def chunk_fraction(self) -> float: ...
    @property
    def window(self) -> WindowConfig: ...
    @property
    def noise(self) -> str: ...
    @property
    def ode_solver(self) -> str: ...
    @property
    def seed(self) -> int: ...
