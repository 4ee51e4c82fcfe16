"""The alarm of a reward that fell on the held-out prompts, and the run that goes back."""

from __future__ import annotations

import json
import math

import pytest
import torch
from fakes import Brightness, ToyPolicy, toy_config
from small_runs import without_seconds

from chunk_grpo_core.measure.evaluate import Evaluation
from chunk_grpo_core.measure.reward_fell import fallen, fallen_in, reward_gains
from chunk_grpo_core.method.reward import RewardBatch
from chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.runs.view import run_view
from chunk_grpo_core.train.alarms import AlarmStop
from chunk_grpo_core.train.config import OptimizerConfig, RunSettings
from chunk_grpo_core.watch.history import read_metrics

TRAINED = [f"prompt {index}" for index in range(4)]
HELD_OUT = [f"other {index}" for index in range(12)]
STOPS = RunSettings(stop_on=("reward-fell",))


class Darkness(Brightness):
    """What is lost as pictures get brighter."""

    name = "darkness"

    def score(self, images, examples):
        return RewardBatch.of(-images.mean((1, 2, 3)))


def measured(changes, weight=1.0, name="prompt"):
    """The row of a measurement of one reward, whose scores changed so on each prompt."""
    examples = tuple(map(str, range(len(changes))))
    before, after = (
        Evaluation(examples, values[:, None], {name: values[:, None]}, torch.zeros(1))
        for values in (torch.zeros(len(changes)), torch.as_tensor(changes))
    )
    parts = [
        WeightedReward(reward=Brightness(), weight=1.0),
        WeightedReward(reward=type("Named", (Brightness,), {"name": name})(), weight=weight),
    ]
    return {"iterations": 5, "rewards": reward_gains(before, after, CombinedReward(parts))}


def noise(*shape, seed=0):
    """Changes of prompts with heavy tails, as pictures have them: most stay, some turn."""
    dice = torch.Generator().manual_seed(seed)
    turns = torch.randn(shape, generator=dice) * (torch.rand(shape, generator=dice) < 0.3)
    return turns + 0.1 * torch.randn(shape, generator=dice)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_reward_that_fell_beyond_doubt_raises_the_alarm_also_if_it_is_only_watched(weight):
    alarm = fallen(measured(noise(48) - 0.5, weight))
    assert alarm and alarm.name == "reward-fell" and alarm.iteration == 5
    assert " to -0.601 on the" in alarm.cause and "48 held-out prompts" in alarm.cause
    assert "give prompt a larger weight" in alarm.advice
    assert fallen(measured(noise(48) + 0.5, weight)) is None


def test_a_reward_that_is_to_fall_raises_no_alarm():
    assert fallen(measured(noise(48) - 0.5, -1.0)) is None


@pytest.mark.parametrize("prompts", [8, 24, pytest.param(96, marks=pytest.mark.slow)])
def test_runs_in_which_nothing_changed_raise_it_in_at_most_five_of_a_hundred(prompts):
    """20 looks each, with all their noise anew, which is worse than that of a run."""
    looks = [fallen(measured(changes)) for changes in noise(4000, prompts, seed=prompts)]
    runs = [any(looks[start : start + 20]) for start in range(0, 4000, 20)]
    assert sum(runs) / len(runs) <= 0.05


def test_a_fall_of_half_a_deviation_is_seen_with_96_prompts():
    seen = [fallen(measured(changes - 0.3)) for changes in noise(50, 96, seed=3)]
    assert sum(alarm is not None for alarm in seen) > 45


@pytest.mark.parametrize(
    "damage",
    [None, [], {"prompt": 3}, {"prompt": {"gain": "x"}}, {"prompt": {"weight": None}}, {"a": {}}],
)
def test_a_damaged_measurement_is_left_out(damage):
    assert fallen({"iterations": 3, "rewards": damage}) is None
    row = measured(noise(48) - 0.5)
    row["rewards"]["prompt"] = {**row["rewards"]["prompt"], "high": math.nan}
    assert fallen(row) is None
    assert fallen_in([{}, {**measured(noise(48) - 0.5), "iterations": "x"}]) == ()


def run(folder, resume=False, **changes):
    reward = CombinedReward(
        [
            WeightedReward(reward=Brightness(), weight=1.0),
            WeightedReward(reward=Darkness(), weight=0.0),
        ]
    )
    settings = {
        "iterations": 12,
        "evaluate_every": 2,
        "checkpoint_every": 1,
        "optimizer": OptimizerConfig(learning_rate=0.05),
        "run": STOPS,
        **changes,
    }
    config = toy_config(**settings)
    return run_experiment(
        ToyPolicy(), reward, TRAINED, HELD_OUT, config, folder, resume=resume, evaluation_seeds=2
    )


def test_a_run_whose_watched_reward_falls_ends_with_the_weights_from_before(tmp_path):
    folder = RunFolder(tmp_path / "a")
    outcome = run(folder)
    fell = next(row["iterations"] for row in outcome.held_out if fallen(row))
    assert 2 < fell < 12 and outcome.iterations == fell - 2
    assert [alarm.name for alarm in outcome.alarms] == ["reward-fell"]
    assert run_view(folder.path)["alarms"] == [outcome.alarms[0].text]
    kept = folder.checkpoints.load()
    assert kept and kept.iteration == outcome.iterations
    assert set(outcome.held_out[-1]["rewards"]) == {"brightness", "darkness"}
    # The run goes on from there to the numbers of one that never went back.
    stay = RunSettings(stop_on=())
    resumed = run(folder, resume=True, run=stay)
    whole = run(RunFolder(tmp_path / "b"), run=stay)
    assert resumed.iterations == 12
    assert without_seconds(resumed.rows) == without_seconds(whole.rows)
    assert resumed.after.rewards.equal(whole.after.rewards)
    measurements = read_metrics(folder.held_out_file)
    assert json.dumps(measurements) == json.dumps(whole.held_out)


def test_a_fall_that_is_seen_at_the_end_is_gone_back_from_too(tmp_path):
    folder = RunFolder(tmp_path)
    outcome = run(folder, iterations=8, evaluate_every=6)
    assert outcome.iterations == 6 and outcome.held_out[-1]["iterations"] == 8
    kept = folder.checkpoints.load()
    assert kept and kept.iteration == 6
    row = next(row for row in outcome.held_out if row["iterations"] == 6)
    assert row["mean"] == pytest.approx(outcome.after.mean, abs=1e-6) and not fallen(row)


def test_a_run_that_fell_at_its_first_measurement_has_nothing_to_go_back_to(tmp_path):
    with pytest.raises(AlarmStop, match="reward-fell after iteration 8.*run.stop_on names"):
        run(RunFolder(tmp_path), evaluate_every=8)


def test_the_alarm_needs_measurements():
    with pytest.raises(ValueError, match=r"run.stop_on names reward-fell.*evaluate_every is 0"):
        toy_config(run=STOPS)
