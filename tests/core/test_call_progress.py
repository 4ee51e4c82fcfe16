"""How far an iteration has come, between its groups and updates."""

from __future__ import annotations

import pytest
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config

from chunk_grpo_core.train import call_progress
from chunk_grpo_core.train.call_progress import CallProgress
from chunk_grpo_core.train.events import PhaseProgress
from chunk_grpo_core.train.trainer import Trainer


def test_a_phase_is_as_long_as_the_last_one_was():
    told = []
    calls = CallProgress(lambda *done: told.append(done), pause=0.0)
    checked = []
    check = calls.after(lambda: checked.append(1))
    with calls.phase("update"):
        for _ in range(4):
            check()
        assert told == []  # nobody knows how many are to come
        calls.reach(1.0)
    with calls.phase("update"):
        for _ in range(4):
            check()
        calls.reach(1.0)
    assert told[1:] == [("update", f) for f in (0.625, 0.75, 0.875, 0.9, 1.0)]
    assert len(checked) == 8
    told.clear()
    check()  # between the phases
    assert told == []


def test_it_never_goes_back_and_never_ends_too_early():
    told = []
    calls = CallProgress(lambda _, fraction: told.append(fraction), pause=0.0)
    with calls.phase("rollout"):
        for _ in range(2):
            calls.call()
    with calls.phase("rollout"):
        calls.reach(0.4)  # a group is done sooner than its calls say
        for _ in range(6):
            calls.call()
    assert told == sorted(told) and told[0] == 0.4 and 0.4 < told[-1] < 0.5


def test_a_phase_that_was_broken_off_says_nothing_of_the_next_one():
    told = []
    calls = CallProgress(lambda *done: told.append(done), pause=0.0)
    with pytest.raises(RuntimeError), calls.phase("rollout"):
        calls.call()
        raise RuntimeError
    with calls.phase("rollout"):
        calls.call()
    assert told == []


def test_a_training_tells_of_its_calls(monkeypatch):
    monkeypatch.setattr(CallProgress.__init__, "__kwdefaults__", {"pause": 0.0})
    events = []
    Trainer(
        ToyPolicy(), Brightness(), PROMPTS, toy_config(iterations=2), listener=events.append
    ).train()
    first, second = (
        [e.fraction for e in events if isinstance(e, PhaseProgress) and e.iteration == i]
        for i in (0, 1)
    )
    assert first == [0.25, 0.5, 0.75, 1.0] and set(first) < set(second)
    assert second == sorted(second) and len(second) > 12
    assert call_progress._PAUSE >= 0.1  # in use it is not told of each
