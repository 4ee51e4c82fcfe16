"""Groups that wait for their scores: after the rollout, or in a thread during it.

The thread is worth it where decoding and scoring need little of what the rollout needs: a reward on
another device or behind a network. Results come in the order of the groups, and are those of
scoring afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from ..method.policy import Policy
from ..method.reward import Reward, RewardBatch, score_or_mask
from ..method.rollout import Trajectory
from ..processes.collective import Processes, Share
from .batch_limit import BatchLimit

__all__ = ["ScoreQueue", "score_group", "whole_groups"]

Scored = tuple[Tensor, RewardBatch]
"""Pictures and their scores."""


def score_group(policy: Policy, reward: Reward, limit: BatchLimit, group: Trajectory) -> Scored:
    """Decode a group, as many samples at once as fit, and score it; a reward may fail."""
    images = limit.join(policy.decode, group.x_0)
    return images, score_or_mask(reward, images, [group.example] * group.group_size)


class ScoreQueue:
    """``with ScoreQueue(...) as queue:``, in it :meth:`add` groups, then :meth:`results`.

    Groups are scored one after the other. An exception of scoring is raised by :meth:`results`, or
    by the next :meth:`add`.
    """

    def __init__(
        self,
        score: Callable[[Trajectory], Scored],
        tell: Callable[[Trajectory, Tensor, RewardBatch], None],
        *,
        in_thread: bool,
    ) -> None:
        """Set up.

        Args:
            score: What a thread can do meanwhile.
            tell: Told of each scored group, in the thread that calls :meth:`add`, soon.
            in_thread: If not, all is done by :meth:`results`, without a thread.
        """
        self._score, self._tell = score, tell
        self._pool = ThreadPoolExecutor(1, "score") if in_thread else None
        self._waiting: deque[tuple[Trajectory, Future[Scored] | None]] = deque()
        self._scores: list[RewardBatch] = []

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
        """Wait for all scores."""
        while self._waiting:
            self._finish_one()
        return self._scores

    def _finish_one(self) -> None:
        group, future = self._waiting.popleft()
        images, batch = future.result() if future else self._score(group)
        self._tell(group, images, batch)
        self._scores.append(batch)


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
