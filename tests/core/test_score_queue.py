"""Scoring while the next group is sampled: the same numbers, in order, and errors that arrive."""

from __future__ import annotations

import math
import threading
import time

import pytest
import torch
from fakes import PROMPTS, Brightness, CancelAfter, ToyPolicy, toy_config

from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.reward import RewardBatch
from chunk_grpo_core.train.events import IterationEnd, RolloutEnd
from chunk_grpo_core.train.score_queue import ScoreQueue
from chunk_grpo_core.train.trainer import Trainer


class Watched(Brightness):
    """Brightness, which notes in which threads it scores and how far the rollout was."""

    def __init__(self, policy, seconds=0.0):
        self.policy, self.seconds, self.threads, self.calls = policy, seconds, set(), []

    def score(self, images, examples):
        before = len(self.policy.calls)
        time.sleep(self.seconds)
        self.threads.add(threading.current_thread())
        self.calls.append((before, len(self.policy.calls)))
        return super().score(images, examples)


def run_of(*, is_on, seconds=0.0, reward=None, check=lambda: None):
    policy, events = ToyPolicy(), []
    reward = reward or Watched(policy, seconds)
    config = toy_config(
        iterations=2, prompts_per_iteration=4, score_while_sampling=is_on, self_test=False
    )
    Trainer(policy, reward, PROMPTS, config, listener=events.append, check_cancel=check).train()
    rows = [
        {key: value for key, value in event.metrics.items() if key != "seconds"}
        for event in events
        if isinstance(event, IterationEnd)
    ]
    scored = [(e.example, e.rewards.tolist()) for e in events if isinstance(e, RolloutEnd)]
    factors = torch.cat([factor.detach().flatten() for factor in policy.adapter.parameters()])
    return rows, scored, factors, reward


def test_the_numbers_are_those_of_scoring_afterwards():
    rows, scored, factors, serial = run_of(is_on=False)
    others, told, moved, overlapped = run_of(is_on=True)
    assert others == rows and told == scored and torch.equal(moved, factors)
    assert serial.threads == {threading.main_thread()}
    assert threading.main_thread() not in overlapped.threads
    assert len(overlapped.threads) <= 2  # one for each iteration


def test_the_next_group_is_sampled_while_a_group_is_scored():
    *_, reward = run_of(is_on=True, seconds=0.05)
    assert any(after > before for before, after in reward.calls)
    *_, reward = run_of(is_on=False)
    assert all(after == before for before, after in reward.calls)


def test_listeners_hear_in_the_thread_that_trains():
    threads = set()
    config = toy_config(iterations=1, score_while_sampling=True)
    Trainer(
        ToyPolicy(),
        Brightness(),
        PROMPTS,
        config,
        listener=lambda event: threads.add(threading.current_thread()),
    ).train()
    assert threads == {threading.main_thread()}


class Failing(Brightness):
    def score(self, images, examples):
        raise KeyError("no such weight")


@pytest.mark.parametrize("is_on", [True, False])
def test_an_error_of_the_reward_ends_the_run(is_on):
    with pytest.raises(KeyError, match="no such weight"):
        run_of(is_on=is_on, reward=Failing())
    assert not any(thread.name.startswith("score") for thread in threading.enumerate())


def test_a_cancelled_rollout_waits_for_the_score_under_way_and_drops_the_rest():
    with pytest.raises(Cancelled):
        run_of(is_on=True, seconds=0.05, check=CancelAfter(20))
    assert not any(thread.name.startswith("score") for thread in threading.enumerate())


def scores_of(*values):
    return RewardBatch.of(torch.tensor(values))


def never_again(group, images):
    raise AssertionError("there is nothing to score again")


@pytest.mark.parametrize("in_thread", [True, False])
def test_scores_come_in_the_order_of_the_groups(in_thread):
    delays, told = [0.03, 0.0, 0.01], []

    def score(delay):
        time.sleep(delay)
        return f"pictures {delay}", scores_of(delay)

    def tell(group, pictures, batch):
        told.append((group, pictures, batch.values.tolist()))

    with ScoreQueue(score, never_again, tell, in_thread=in_thread) as queue:
        for delay in delays:
            queue.add(delay)
        found = [batch.values.tolist() for batch in queue.results()]
        assert found == [scores_of(delay).values.tolist() for delay in delays]
    assert told == [
        (delay, f"pictures {delay}", scores_of(delay).values.tolist()) for delay in delays
    ]


def test_a_group_is_told_of_as_soon_as_it_is_scored():
    told, end = [], time.monotonic() + 10
    score = lambda group: (group, scores_of(1.0))  # noqa: E731
    tell = lambda *group: told.append(group)  # noqa: E731
    with ScoreQueue(score, never_again, tell, in_thread=True) as queue:
        queue.add("first")
        while not told and time.monotonic() < end:
            time.sleep(0.001)
            queue.add("next")
        assert told[0][:2] == ("first", "first")


@pytest.mark.parametrize("in_thread", [True, False])
def test_groups_without_scores_are_scored_again_from_their_pictures_and_told_of_in_order(in_thread):
    told, drawn, again = [], [], []

    def score(group):
        drawn.append(group)
        return f"pictures of {group}", scores_of(1.0 if group == "b" else math.nan)

    def score_again(group, pictures):
        again.append((group, pictures))
        return scores_of(2.0 if len(again) > 2 else math.nan)

    with ScoreQueue(score, score_again, lambda *g: told.append(g), in_thread=in_thread) as queue:
        for group in "abc":
            queue.add(group)
        assert [bool(batch.valid.all()) for batch in queue.results()] == [False, True, False]
        assert told == []  # order is that of the groups, and the first has no score
        queue.results()
        assert [float(batch.values) for batch in queue.results()] == [2.0, 1.0, 2.0]
        queue.close()
    assert [group for group, *_ in told] == drawn == ["a", "b", "c"]
    pairs = [("a", "pictures of a"), ("c", "pictures of c")]
    assert again == pairs + pairs
