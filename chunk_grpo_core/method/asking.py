"""A person who is asked while a training runs: what is asked, who asks, and which rewards do.

A reward *asks* when each of its numbers is a person's click (votes). It *refits* when it was fitted
to clicks, and can be fitted again to newer ones (a taste). Neither knows how the person is reached:
that is handed to it for a run, as a :class:`Person`.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from torch import Tensor

from ..prompts.example import Example
from ..settings.declared import OneOf, Range, changed_fields, check_settings
from .reward import Reward

__all__ = [
    "WAYS",
    "AskConfig",
    "Asks",
    "Person",
    "Question",
    "Refits",
    "RefitRequest",
]

WAYS = ("hearts", "best", "duels", "stars")
"""How a person can be asked about a group of pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AskConfig:
    """Stops at which a taste that is trained on is asked for, and fitted again."""

    every: Annotated[int, Range(0, 1_000_000)] = 0
    """Iterations between two stops; 0 never stops. The reward must be, or contain, a taste whose
    picks are known."""
    clicks: Annotated[int, Range(1, 64)] = 16
    """Clicks that are asked for at a stop; the person may go on with fewer."""
    pictures: Annotated[int, Range(2, 64)] = 16
    """Pictures that are drawn for a stop with the LoRA as it is, four of each prompt."""
    kind: Annotated[str, OneOf(WAYS)] = "duels"
    """How they are shown first: best, hearts, duels or stars."""
    when_alarm: bool = False
    """Also stop when an alarm speaks that does not end the run."""

    def __post_init__(self) -> None:
        check_settings(self, "ask")

    @property
    def is_on(self) -> bool:
        """Whether a training may stop and ask."""
        return self.every > 0 or self.when_alarm

    def check_used(self) -> None:
        """Refuse settings of a stop where there is none. A run that goes on may switch its stops
        off and keep them.

        Raises:
            ValueError: There is one; the message names it.
        """
        for name in () if self.is_on else changed_fields(self):
            raise ValueError(
                f"ask.{name} is {getattr(self, name)!r}, but the training never stops to ask: "
                "ask.every is 0 and ask.when_alarm is false; set one of them, or leave "
                f"ask.{name} out. How votes are asked is a setting of the reward votes: kind"
            )


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a person is asked, as whoever shows it needs to know."""

    folder: Path
    """Of the taste: its picks, pictures and batches lie there."""
    batches: tuple[str, ...]
    """Ids of the groups of pictures, in order."""
    kind: str
    """One of ``WAYS``: how they are shown first."""
    given: int
    """Clicks about them so far."""
    wanted: int
    """Clicks after which nothing more is asked; 0 until each group is answered."""
    why: str
    """For people: votes, every 10 iterations, alarm collapse."""

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-ready; the folder as ``taste``, its name."""
        facts = asdict(self)
        del facts["folder"]
        return {"taste": self.folder.name, **facts, "batches": list(self.batches)}


class Person(Protocol):
    """How a person is reached."""

    def wait(self, question: Question) -> bool:
        """Show a question, as it stands now, and wait for a moment.

        Returns:
            Whether the person wants to go on with what was said so far.

        Raises:
            Exception: Whatever cancels the training.
        """
        ...

    def answered(self) -> None:
        """Nothing is asked any more."""
        ...


@runtime_checkable
class Asks(Protocol):
    """A reward whose numbers are clicks of a person."""

    def asking(self, person: Person) -> Reward:
        """The same reward, which asks this person. Without one it knows what was said before."""
        ...


@dataclass(frozen=True, kw_only=True)
class RefitRequest:
    """What a reward is fitted again with."""

    images: Tensor
    """(B, H, W, 3), CPU float32 in 0..1: the newest pictures."""
    examples: Sequence[Example]
    """Of each."""
    config: AskConfig
    why: str
    """For the question."""
    file: Path
    """Where the new head goes."""


@runtime_checkable
class Refits(Protocol):
    """A reward that can be fitted again to what a person says of new pictures."""

    def check_refits(self) -> None:
        """Make sure that it can.

        Raises:
            ValueError: It cannot; the message says what is missing.
        """
        ...

    def refit(self, request: RefitRequest, person: Person) -> Reward | None:
        """Ask, fit, and write ``request.file``; None if nothing was said, and nothing is written.

        Asked again about the same pictures, it asks only for what was not said yet.
        """
        ...

    def keep(self, file: Path) -> None:
        """Write the head that it has."""
        ...

    def of_file(self, file: Path) -> Reward:
        """The same reward with the head of a file that it has written."""
        ...
