"""What a training run tells the world, and how the world ends it early.

The trainer calls one listener with these events; files, progress bars, plots and web sockets are
listeners. Nothing here knows who listens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ..method.asking import Question
from ..prompts.example import Example
from .alarms import Alarm

__all__ = [
    "AdvantagesEnd",
    "AlarmRaised",
    "Asked",
    "EvaluationProgress",
    "Event",
    "HeldOutEnd",
    "IterationEnd",
    "Listener",
    "Measured",
    "PhaseProgress",
    "RewardWait",
    "RolloutEnd",
    "RunEnd",
    "RunStart",
    "StopWish",
    "StopWished",
    "broadcast",
    "ignore",
    "never_stop",
]


Measured = Literal["before", "during", "after", "curve"]
"""What is measured outside training: held-out prompts before, during or after it; relative L1."""


@dataclass(frozen=True, slots=True)
class RunStart:
    """Training begins, or goes on after a resume."""

    first_iteration: int
    """0, or the number of iterations already done."""
    iterations: int
    """Iterations in all."""


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """A small piece of an iteration is done; for progress bars."""

    iteration: int
    phase: str
    """rollout, score or update."""
    fraction: float
    """Part of the whole iteration done, 0..1."""


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """A piece of a measurement outside training is done."""

    which: Measured
    fraction: float
    """Part of this measurement done, 0..1."""


@dataclass(frozen=True, slots=True)
class RolloutEnd:
    """One group is sampled and scored."""

    iteration: int
    example: Example
    """What the pictures show."""
    images: Tensor
    """(G, H, W, 3), CPU float32 in 0..1."""
    rewards: Tensor
    """(G,), CPU float32; NaN where the reward was invalid."""


@dataclass(frozen=True, slots=True)
class RewardWait:
    """No picture has a score; the run waits, then scores the same pictures again."""

    what: str
    """What the pictures belong to, such as "iteration 3"."""
    reason: str
    """What the reward said."""
    number: int
    """Number of the try that follows, 1-based."""
    tries: int
    """Tries in all."""
    seconds: float
    """How long the run waits."""

    @property
    def text(self) -> str:
        """All of it, for people."""
        return (
            f"all-masked: no picture of {self.what} has a score ({self.reason}); waiting "
            f"{self.seconds:g} s for the reward, then try {self.number} of {self.tries}"
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """The run waits for a person; told again whenever they have said something."""

    question: Question | None
    """None: it goes on."""


@dataclass(frozen=True, slots=True)
class AdvantagesEnd:
    """The samples of an iteration are compared; follows the last of its ``RolloutEnd``."""

    iteration: int
    advantages: tuple[Tensor, ...]
    """Those of each ``RolloutEnd`` of the iteration, in their order: (G,), CPU float32."""


@dataclass(frozen=True, slots=True)
class IterationEnd:
    """One iteration is done and its metrics are final."""

    iteration: int
    """0-based."""
    metrics: Mapping[str, object]
    """One JSON-ready row (see ``watch/history.py``)."""


@dataclass(frozen=True, slots=True)
class AlarmRaised:
    """The last iterations show that the run does not learn; follows their ``IterationEnd``."""

    alarm: Alarm


@dataclass(frozen=True, slots=True)
class HeldOutEnd:
    """The held-out prompts are measured."""

    iterations: int
    """Iterations done; 0 is the base model."""
    mean: float
    """Mean reward."""
    low: float
    """The base model's mean plus the lower end of the gain's 95 % interval."""
    high: float
    """The same with the upper end."""
    missing: int = 0
    """Pictures without a score, which are left out."""
    rewards: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What became of each reward since the base model: ``weight``, ``mean``, ``gain``, the
    ``low`` and ``high`` end of the gain's 95 % interval, ``prompts``."""
    refit: int = 0
    """Iterations that were done when the reward that measured was fitted; 0 is the one that the
    run began with. Only rows with the same number can be compared."""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """Training and measuring are over."""

    iterations: int
    """Iterations done."""
    stopped: bool
    """Someone asked for the end before the last iteration."""


Event = (
    RunStart
    | PhaseProgress
    | EvaluationProgress
    | RolloutEnd
    | RewardWait
    | Asked
    | AdvantagesEnd
    | IterationEnd
    | AlarmRaised
    | HeldOutEnd
    | RunEnd
)
Listener = Callable[[Event], None]
StopWish = Callable[[], bool]
"""Whether someone wants the run to end early and keep what it has learnt."""


class StopWished(Exception):
    """Ends the training before its next update: somebody wants it to end, and what goes on has
    changed nothing yet."""


def ignore(event: Event) -> None:
    """The listener of a run that nobody watches."""


def never_stop() -> bool:
    """The wish of a run that goes to its end."""
    return False


def broadcast(*listeners: Listener) -> Listener:
    """Make one listener that passes every event to each of ``listeners`` in turn."""

    def listen(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return listen
