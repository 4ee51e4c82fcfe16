"""The settings that every algorithm reads, and the refusal of those that one of them does not use;
a TrainConfig has them and says what they mean."""

from __future__ import annotations

from typing import Protocol

from ..method.chunks import ChunkPlan
from ..method.matching import ForwardConfig
from ..method.matching_times import MatchingTimes
from ..method.objective import ObjectiveConfig
from ..method.preference import PreferenceConfig
from ..method.rules import SdeConfig
from ..method.schedule import TimeGrid
from ..method.windows import WindowConfig
from ..settings.declared import changed_fields, shortened

__all__ = ["CommonSettings", "OptimizerSettings", "check_times", "refuse_chunks", "refuse_part"]


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
    def preference(self) -> PreferenceConfig: ...
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


def refuse_part(config: CommonSettings, part: str, algorithm: str) -> None:
    """Refuse the settings of another algorithm.

    Args:
        config: All settings.
        part: What stands before the dot of their keys; for those of an algorithm, its name.
        algorithm: Which one does not use them.

    Raises:
        ValueError: One differs from its default.
    """
    values = getattr(config, part)
    for name in changed_fields(values):
        raise ValueError(
            f"{part}.{name} is {shortened(getattr(values, name))}, but the algorithm {algorithm} "
            f"does not use it; leave it out{_OWNERS.get(part, '')}"
        )


_OWNERS = {name: f', or set algorithm to "{name}"' for name in ("forward", "preference")}


def refuse_chunks(config: CommonSettings, algorithm: str) -> None:
    """Refuse what only an algorithm with chunks of steps and a clipped ratio uses.

    Raises:
        ValueError: A setting of Chunk-GRPO alone is set.
    """
    if config.plan is not None:
        raise ValueError(
            f"plan is set, but the algorithm {algorithm} trains no chunks of steps; leave the plan "
            "out"
        )
    window = config.window
    of_window = [(f"window.{n}", getattr(window, n), None) for n in changed_fields(window)]
    for name, value, unset in (
        *of_window,
        ("chunk_fraction", config.chunk_fraction, 0.5),
        ("noise", config.noise, "all"),
        ("optimizer.recompute_log_p", config.optimizer.recompute_log_p, None),
    ):
        if value != unset:
            raise ValueError(
                f"{name} is {value!r}, which has no effect in the algorithm {algorithm}; leave it "
                "out"
            )
    for name in changed_fields(config.objective):
        raise ValueError(
            f"objective.{name} is {getattr(config.objective, name)!r}, but the algorithm "
            f"{algorithm} has its own objective, with settings that begin with {algorithm}.; leave "
            "it out"
        )


def check_times(times: MatchingTimes, grid: TimeGrid, algorithm: str) -> None:
    """Refuse more times than there are levels to choose from.

    Raises:
        ValueError: There are.
    """
    count, levels = times.times, grid.steps
    if times.time_distribution == "grid" and count > levels:
        raise ValueError(
            f"{algorithm}.times is {count}, but the grid has {levels} levels above 0 to choose "
            'from; take fewer times, more steps, or time_distribution "uniform"'
        )
