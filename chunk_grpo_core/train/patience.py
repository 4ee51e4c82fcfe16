"""Waiting for a reward that scores no picture at all: longer and longer, then no more.

A reward server that is restarted comes back after seconds or minutes. What was sampled is kept and
scored again, so that a run that waited has the numbers of one that did not have to.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..method.cancel import CheckCancel, never_cancel
from ..method.reward import RewardBatch, check_scored, last_error
from .config import RunSettings
from .events import Listener, RewardWait, ignore

__all__ = ["Patience"]

log = logging.getLogger(__name__)

_LONGEST = 600.0
"""Seconds of the longest wait."""
_SLICE = 0.1
"""Seconds between two looks at whether somebody wants to stop."""


@dataclass(frozen=True)
class Patience:
    """How long to wait, and who is told."""

    settings: RunSettings
    listen: Listener = ignore
    check_cancel: CheckCancel = never_cancel
    """Raises to stop; called ten times a second."""

    @property
    def waits(self) -> list[float]:
        """Seconds before each further try; each is twice as long as the one before."""
        if "all-masked" in self.settings.stop_on:
            return []
        first, tries = self.settings.reward_wait, self.settings.reward_retries
        return [min(first * 2**number, _LONGEST) for number in range(tries)]

    def until_scored(
        self, attempt: Callable[[], Sequence[RewardBatch]], reward: str, what: str
    ) -> list[RewardBatch]:
        """Call ``attempt`` until at least one picture has a score.

        Args:
            attempt: Scores what has no score yet, and gives the batches of all processes; every
                process calls this.
            reward: Name of the reward, for messages.
            what: What the pictures belong to, such as "iteration 3".

        Raises:
            NothingScored: No picture has a score after the last try, or none of them is finite, so
                that waiting does not help.
        """
        batches = list(attempt())
        for number, seconds in enumerate(self.waits, start=1):
            if any(bool(batch.valid.any()) for batch in batches):
                return batches
            if all(batch.is_not_finite for batch in batches):
                break
            reason = last_error(batches) or "every score is missing or not finite"
            wait = RewardWait(what, reason, number, self.settings.reward_retries, seconds)
            log.warning("%s", wait.text)
            self.listen(wait)
            self._sleep(seconds)
            batches = list(attempt())
        check_scored(batches, reward, what)
        return batches

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for _ in range(math.ceil(seconds / _SLICE)):
            self.check_cancel()
            time.sleep(max(0.0, min(_SLICE, end - time.monotonic())))
        self.check_cancel()
