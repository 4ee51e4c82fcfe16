"""A run that asks its person: it waits for votes, and stops to have its taste fitted again.

    refits/iteration_000010.json             what was asked after 10 iterations, and which heads
    refits/iteration_000010_1.safetensors    the head of the first taste, as it was fitted then

A head is written before the record that names it. The pictures of a stop are drawn with the LoRA as
it is and with noise of their own, so that a run that was killed and comes to the stop again draws
the same ones, finds what was said, and fits the same head.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..method.asking import Asks, Person, Question, Refits
from ..method.cancel import CheckCancel
from ..method.reward import NoReward, Reward
from ..processes.collective import Processes
from ..rewards.parts import asks, changed, measurable, simple_parts
from ..train.config import TrainConfig
from ..train.events import Asked, Listener, StopWished

__all__ = [
    "GoesOn",
    "WaitingRun",
    "asked_by",
    "check_asking",
    "never_goes_on",
]

log = logging.getLogger(__name__)

GoesOn = Callable[[Question], bool]
"""Asked ten times a second while a run waits; whether the person wants to go on."""
_OF_PROMPT = 4
"""Pictures of each prompt at a stop."""
_PAUSE = 0.1
"""Seconds between two looks at what was said."""


def never_goes_on(question: Question) -> bool:
    """A person who answers with clicks alone."""
    return False


def check_asking(reward: Reward, config: TrainConfig, processes: Processes) -> None:
    """Make sure that a run can ask its person.

    Raises:
        ValueError: It cannot; the message names the setting.
    """
    if not (config.ask.is_on or asks(reward)):
        return
    if asks(reward) and config.algorithm == "preference":
        raise ValueError(
            "the reward contains votes, but the algorithm preference makes no groups of pictures "
            "to vote on: it trains on picks that are there already; leave votes out, or train on "
            "them with another algorithm"
        )
    setting = "the reward votes" if asks(reward) else "ask.every or ask.when_alarm"
    if processes.count > 1:
        raise ValueError(
            f"{setting} asks a person, which only a training of one process does; there are "
            f"{processes.count}. Start it without a launcher"
        )
    if asks(reward) and config.score_while_sampling:
        raise ValueError(
            "score_while_sampling is true, but the reward votes waits for a person, and nothing "
            "is gained by sampling meanwhile; set it to false"
        )
    if config.evaluate_every and isinstance(measurable(reward), NoReward):
        raise ValueError(
            f"evaluate_every is {config.evaluate_every}, but the reward votes is not asked about "
            "held-out prompts; set it to 0, or combine votes with a reward that measures (one of "
            "weight 0 is only watched)"
        )
    if not config.ask.is_on:
        return
    taught = [part for part in simple_parts(reward) if isinstance(part, Refits)]
    if not taught:
        raise ValueError(
            f"ask.every is {config.ask.every} and ask.when_alarm is "
            f"{str(config.ask.when_alarm).lower()}, but the reward {reward.name} contains no taste "
            "that could be fitted again; leave them out, or train on a taste"
        )
    for part in taught:
        part.check_refits()


@dataclass
class WaitingRun:
    """The person of a run: they are shown the question by whoever listens."""

    listen: Listener
    check_cancel: CheckCancel
    goes_on: GoesOn
    wants_stop: Callable[[], bool]
    """Whether the run may end here, and is to."""

    def __post_init__(self) -> None:
        self._told: Question | None = None

    def wait(self, question: Question) -> bool:
        """See :class:`~chunk_grpo_core.method.asking.Person`.

        Raises:
            StopWished: Somebody wants the run to end and keep what it has learnt.
        """
        if question != self._told:
            self.listen(Asked(question))
            self._told = question
        self.check_cancel()
        if self.wants_stop():
            raise StopWished
        if self.goes_on(question):
            return True
        time.sleep(_PAUSE)
        return False

    def answered(self) -> None:
        """See :class:`~chunk_grpo_core.method.asking.Person`."""
        if self._told is not None:
            self._told = None
            self.listen(Asked(None))


def asked_by(reward: Reward, person: Person) -> Reward:
    """The same reward; its votes ask this person."""
    return changed(reward, lambda part: part.asking(person) if isinstance(part, Asks) else part)
