"""A little of a training is tried before it begins: what it says, and that it leaves nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import PROMPTS, Brightness, FailsAfter, ToyPolicy, toy_config

from chunk_grpo_core.method.reward import NothingScored, RewardBatch
from chunk_grpo_core.presets import PRESETS, preset_config
from chunk_grpo_core.presets.cost import WITH_GRADIENT, units_of
from chunk_grpo_core.runs import check as check_module
from chunk_grpo_core.runs.check import check_training
from chunk_grpo_core.runs.forecast import Timed, duration, iteration_seconds, small_config
from chunk_grpo_core.train.batch_limit import BatchLimit
from chunk_grpo_core.train.config import RunSettings
from chunk_grpo_core.train.velocity_norm import CALLS

HELD_OUT = ("new", "newer", "newest")


@pytest.fixture(autouse=True)
def one_iteration(monkeypatch):
    monkeypatch.setattr(check_module, "_ENOUGH", 0.0)
    monkeypatch.setattr(check_module, "_SHORT", 0.0)


def tried(policy=None, reward=None, **settings):
    options = {"evaluation_seeds": 2, "limit": settings.pop("limit", None)}
    config = toy_config(**settings)
    policy, reward = policy or ToyPolicy(), reward or Brightness()
    return check_training(policy, reward, PROMPTS, HELD_OUT, config, **options)


def test_it_says_what_the_training_is_and_that_it_can_learn():
    check = tried(iterations=20, evaluate_every=5, prompts_per_iteration=4, group_size=8)
    assert (check.iterations, check.pictures, check.measurements) == (20, 32, 2 + 3)
    assert check.seconds_per_iteration > 0 and check.seconds_per_measurement > 0
    of_all = 20 * check.seconds_per_iteration + 5 * check.seconds_per_measurement
    assert check.seconds == pytest.approx(of_all + check.seconds_once)
    assert check.self_test is not None and check.self_test.error <= check.self_test.tolerance
    assert check.reward == "brightness" and check.sees_differences
    assert (check.fitting, check.batch_size, check.unscored) == (8, 8, 0)
    assert check.advice == []
    text = "\n".join(check.lines())
    for word in ("20 iterations of 32 pictures", "5 measurements", "Self-test: passed", "spread"):
        assert word in text
    assert check.to_json()["fits"] is True


def test_weights_random_numbers_and_the_disk_are_as_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    policy = ToyPolicy()
    policy.adapter.factors["leave.lora_B.weight"].data.fill_(0.01)  # one that was trained before
    before, drawn = policy.adapter.state_dict(), torch.get_rng_state()
    tried(policy)
    after = policy.adapter.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.parametrize(("batch_size", "largest"), [(None, 8), (3, 4), (1, 4)])
def test_the_calls_are_as_large_as_those_of_the_training_and_few(batch_size, largest):
    policy, whole = ToyPolicy(), ToyPolicy()
    tried(policy, batch_size=batch_size, prompts_per_iteration=8, group_size=8, self_test=False)
    assert max(policy.calls) == min(batch_size or 8, largest)
    small = small_config(toy_config(batch_size=batch_size, group_size=8, prompts_per_iteration=8))
    assert (small.group_size, small.prompts_per_iteration) == (largest, 2)
    assert sum(policy.calls) < 8 * 8 * 6 or batch_size is None
    assert whole.calls == []


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "gcpo-v3"])
def test_where_time_is_units_of_work_the_forecast_is_exact(name):
    config = replace(preset_config(name), batch_size=6)
    small = small_config(config)
    known: Any = {"remembers_old": True, "mixes_times": False}

    def seconds(part):
        units, pictures = units_of(part, **known), part.prompts_per_iteration * part.group_size
        work = pictures * (units.compared + WITH_GRADIENT * units.trained)
        update = 3.0 * (work + CALLS)  # the length of the velocity, once
        rollout = 2.0 * pictures * units.rollout
        return Timed(seconds=rollout + update, update=update, trained=pictures * units.trained)

    told = iteration_seconds([seconds(small)], config, small, **known)
    assert told == pytest.approx(seconds(config).seconds, rel=1e-6)
    # Fewer steps were drawn than on average: the update is taken to be larger.
    short = replace(seconds(small), trained=seconds(small).trained / 2)
    assert iteration_seconds([short], config, small, **known) > told


def test_where_a_whole_iteration_is_quick_it_is_timed_itself(monkeypatch):
    monkeypatch.setattr(check_module, "_SHORT", 1000.0)
    policy = ToyPolicy()
    check = tried(policy, prompts_per_iteration=3, group_size=6, self_test=False)
    measured, small, whole = 2 * 2 * 2 * 6, 2 * 6 * 6, 3 * 6 * 6
    assert sum(policy.calls) > measured + small + whole  # rollouts alone
    assert check.tried == 18 and check.pictures == 18


class Constant:
    name, fingerprint = "constant", {}

    def score(self, images, examples):
        return RewardBatch.of(torch.full((len(images),), 0.5))


def test_a_reward_that_sees_no_differences_is_told():
    check = tried(reward=Constant(), self_test=False)
    assert check.sees_differences is False
    assert "same score" in check.advice[0] and check.lines()[-2] == check.advice[0]
    assert "Self-test: not done" in "\n".join(check.lines())


def test_a_reward_that_fails_ends_the_try_at_once():
    settings = RunSettings(reward_retries=6, reward_wait=600.0)
    with pytest.raises(NothingScored, match="no answer from the server"):
        tried(reward=FailsAfter(0), run=settings)


class Small(ToyPolicy):
    """Takes three samples at once."""

    def velocity(self, x_t, t, example):
        if len(x_t) > 3:
            raise torch.OutOfMemoryError("too much")
        return super().velocity(x_t, t, example)


def test_what_fits_is_told_and_what_to_set():
    check = tried(Small(), limit=BatchLimit(size=None))
    assert (check.batch_size, check.fitting, check.fits) == (8, 2, False)
    assert "set batch_size to 2" in check.advice[0]
    assert not check.is_tight and replace(check, fitting=1).to_json()["is_tight"]


def test_a_training_that_waits_for_its_person_cannot_be_forecast(monkeypatch):
    monkeypatch.setattr(check_module, "asks", lambda reward: True)
    with pytest.raises(ValueError, match="votes waits for your clicks"):
        tried()


def test_a_training_that_asks_now_and_then_is_tried_without_asking():
    config = small_config(replace(toy_config(), evaluate_every=3))
    assert not config.ask.is_on and config.evaluate_every == 0


def test_little_memory_on_a_device_is_told():
    check = replace(tried(self_test=False), peak_gib=23.0, memory_gib=24.0, free_gib=0.4)
    assert any("Little memory is left" in advice for advice in check.advice)
    assert check.to_json()["is_tight"] and not replace(check, peak_gib=22.0).is_tight
    assert "at most 23.0 of 24.0 GiB" in "\n".join(check.lines())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.2 s"), (9.9, "9.9 s"), (59.6, "60 s"), (130, "2 min"), (12_000, "3 h 20 min")],
)
def test_times_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
