"""Groups that wait for their scores: after the rollout, or in a thread during it.

The thread is worth it where decoding and scoring need little of what the rollout needs: a reward on
another device or behind a network. Results come in the order of the groups, and are those of
scoring afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from ..method.policy import Policy
from ..method.reward import Reward, RewardBatch, score_or_mask
from ..method.rollout import Trajectory
from ..processes.collective import Processes, Share
from .batch_limit import BatchLimit

__all__ = ["GroupScorer", "ScoreQueue", "whole_groups"]

Scored = tuple[Tensor, RewardBatch]
"""Pictures and their scores."""


@dataclass(frozen=True)
class GroupScorer:
    """Decodes and scores groups; a reward may fail."""

    policy: Policy
    reward: Reward
    limit: BatchLimit
    """Of decoding."""

    def __call__(self, group: Trajectory) -> Scored:
        """Decode a group, as many samples at once as fit, and score it."""
        images = self.limit.join(self.policy.decode, group.x_0)
        return images, self.again(group, images)

    def again(self, group: Trajectory, images: Tensor) -> RewardBatch:
        """Score pictures of a group that were decoded before; a person's answers are their own
        scores."""
        if group.answers is not None:
            return RewardBatch.of_answers(group.answers)
        return score_or_mask(self.reward, images, [group.example] * group.group_size)


@dataclass
class _Entry:
    """A group that was scored."""

    group: Trajectory
    images: Tensor
    scores: RewardBatch

    @property
    def is_scored(self) -> bool:
        return bool(self.scores.valid.any())


class ScoreQueue:
    """``with ScoreQueue(...) as queue:``, in it :meth:`add` groups, then :meth:`results`.

    Groups are scored one after the other. An exception of scoring is raised by :meth:`results`, or
    by the next :meth:`add`.
    """

    def __init__(
        self,
        score: Callable[[Trajectory], Scored],
        again: Callable[[Trajectory, Tensor], RewardBatch],
        tell: Callable[[Trajectory, Tensor, RewardBatch], None],
        *,
        in_thread: bool,
    ) -> None:
        """Set up.

        Args:
            score: What a thread can do meanwhile.
            again: Scores pictures that have no score yet.
            tell: Told of each scored group, in order, in the thread that calls :meth:`add`, soon;
                of a group without scores, and of those after it, by :meth:`close`.
            in_thread: If not, all is done by :meth:`results`, without a thread.
        """
        self._score, self._again, self._tell = score, again, tell
        self._pool = ThreadPoolExecutor(1, "score") if in_thread else None
        self._waiting: deque[tuple[Trajectory, Future[Scored] | None]] = deque()
        self._untold: deque[_Entry] = deque()
        self._scores: list[RewardBatch] = []
        self._was_asked = False

    def __enter__(self) -> ScoreQueue:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            # After an error what waits is dropped; what runs must end, for it may hold a device.
            self._pool.shutdown(cancel_futures=True)

    def add(self, group: Trajectory) -> None:
        """Score one group, now or later."""
        self._waiting.append((group, self._pool and self._pool.submit(self._score, group)))
        while self._waiting and (future := self._waiting[0][1]) and future.done():
            self._finish_one()

    def results(self) -> list[RewardBatch]:
        """Wait for all scores; called again, score the groups that have none once more."""
        while self._waiting:
            self._finish_one()
        if self._was_asked:
            for entry in self._untold:
                if not entry.is_scored:
                    entry.scores = self._again(entry.group, entry.images)
        self._was_asked = True
        return [*self._scores, *(entry.scores for entry in self._untold)]

    def close(self) -> None:
        """Tell of the groups that nobody was told of; no more is scored."""
        while self._untold:
            self._tell_one()

    def _finish_one(self) -> None:
        group, future = self._waiting.popleft()
        images, scores = future.result() if future else self._score(group)
        self._untold.append(_Entry(group, images, scores))
        while self._untold and self._untold[0].is_scored:
            self._tell_one()

    def _tell_one(self) -> None:
        entry = self._untold.popleft()
        self._scores.append(entry.scores)
        self._tell(entry.group, entry.images, entry.scores)


def whole_groups(
    processes: Processes, shares: Sequence[Share], batches: Sequence[RewardBatch], count: int
) -> list[RewardBatch]:
    """Join the scores that several processes have of an iteration's groups.

    Args:
        processes: Those that score, each calling this.
        shares: What this one has scored.
        batches: Its scores.
        count: P, groups of the iteration.
    """
    of_groups: list[list[RewardBatch]] = [[] for _ in range(count)]
    for of_process in processes.gather(list(zip(shares, batches, strict=True))):
        for share, batch in of_process:
            of_groups[share.group].append(batch)
    return [RewardBatch.joined(of_group) for of_group in of_groups]
