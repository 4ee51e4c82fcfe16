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
        assert told == [("update", 0.6)]  # it began; nobody knows how many are to come
        calls.reach(1.0)
    told.clear()
    with calls.phase("update"):
        for _ in range(4):
            check()
        calls.reach(1.0)
    fractions = [fraction for phase, fraction in told if phase == "update"]
    assert fractions == pytest.approx([0.6, 0.7, 0.8, 0.9, 0.92, 1.0])
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
        calls.reach(0.75)  # a group is done sooner than its calls say
        for _ in range(6):
            calls.call()
    assert told[1:] == sorted(told[1:]) and told[:2] == [0.0, 0.0]
    assert told[2] == pytest.approx(0.3) and told[2] < told[-1] < 0.4


def test_a_phase_that_was_broken_off_says_nothing_of_the_next_one():
    told = []
    calls = CallProgress(lambda *done: told.append(done), pause=0.0)
    with pytest.raises(RuntimeError), calls.phase("rollout"):
        calls.call()
        raise RuntimeError
    told.clear()
    with calls.phase("rollout"):
        calls.call()
    assert told == [("rollout", 0.0)]


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
    assert first == pytest.approx([0.0, 0.2, 0.4, 0.4, 0.5, 0.6, 0.6, 0.8, 1.0])
    assert set(first) < set(second)
    assert second == sorted(second) and len(second) > 12
    assert call_progress._PAUSE >= 0.1  # in use it is not told of each
