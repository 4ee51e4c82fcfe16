"""Alarms: what a run that does not learn says, and that healthy runs say nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fakes import PROMPTS, Brightness, FailsAfter, ToyPolicy, toy_config

from chunk_grpo_core.method.reward import NothingScored, RewardBatch
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.runs.view import run_view
from chunk_grpo_core.train.alarms import ALARMS, AlarmStop, alarms_of, standing_alarms
from chunk_grpo_core.train.config import OptimizerConfig, RunSettings, TrainConfig
from chunk_grpo_core.train.events import AlarmRaised, IterationEnd, RewardWait
from chunk_grpo_core.train.trainer import Trainer

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "chunk_vs_step"
CONFIG = toy_config(
    iterations=100, optimizer=OptimizerConfig(updates_per_rollout=2, learning_rate=1e-3)
)
HEALTHY = {
    "reward_mean": 0.5,
    "reward_std": 0.1,
    "advantage_std": 0.9,
    "masked_scores": 0,
    "grad_norm": 1e-3,
    "picture_spread": 0.1,
    "clip_fraction": [0.2, 0.3],
    "ratio_max_deviation": [1e-4, 2e-4],
    "ratio_mean": [1.0, 1.0],
    "approx_kl": 1e-9,
    "velocity_norm": 1.02,
}


def rows(count, *changed, **changes):
    """Healthy rows, then one for each of ``changed``, or as many as ``changes`` has values."""
    lengths = {len(value) for value in changes.values()}
    for index in range(lengths.pop() if lengths else 0):
        changed = (*changed, {name: value[index] for name, value in changes.items()})
    all_rows = [{}] * count + list(changed)
    return [{**HEALTHY, **row, "iteration": index} for index, row in enumerate(all_rows)]


def names(found):
    return [alarm.name for alarm in found]


NO_ADVANTAGE = {"advantage_std": 0.0, "reward_std": 0.0, "grad_norm": 0.0}
CASES = {
    "equal scores": ("no-signal", 5, NO_ADVANTAGE, "the same score"),
    "tiny scores": ("no-signal", 5, {**NO_ADVANTAGE, "reward_std": 1e-8}, "a millionth.*weight"),
    "long velocities": ("velocity-norm", 5, {"velocity_norm": 1.2}, "1.20 times.*kl_ref"),
    "no gradient": ("collapse", 5, {"grad_norm": 0.0}, "no gradient.*learning_rate"),
    "clipped": ("collapse", 5, {"clip_fraction": [0.5, 0.5]}, "clipped away.*clip_low"),
    "gradient": ("divergence", 1, {"grad_norm": math.nan}, "the gradient is not finite.*learning"),
    "ratio": ("divergence", 1, {"ratio_max_deviation": [0.1, math.inf]}, "a ratio is not finite"),
    "reward": ("divergence", 1, {"reward_mean": math.inf}, "the reward is not finite"),
    "far": ("divergence", 3, {"ratio_max_deviation": [0.1, 2.0]}, "probability .* changed by 2"),
    "exploded": ("divergence", 3, {"grad_norm": 0.2}, "200 times as long"),
    "masked": ("all-masked", 3, {"masked_scores": 8}, "half of the pictures .*8 of 16"),
}


@pytest.mark.parametrize(("name", "patience", "row", "says"), CASES.values(), ids=CASES)
def test_a_sign_raises_its_alarm_when_it_has_lasted_and_not_before(name, patience, row, says):
    import re

    assert names(standing_alarms(rows(10, *[row] * (patience - 1)), CONFIG)) == []
    (alarm,) = standing_alarms(rows(10, *[row] * patience), CONFIG)
    assert alarm.name == name and alarm.iteration == 10 + patience
    assert re.search(says, alarm.text)
    (first,) = alarms_of(rows(10, *[row] * (patience + 3)), CONFIG)
    assert first.iteration == 10 + patience
    assert standing_alarms(rows(10, *[row] * patience, {}), CONFIG) == ()


def test_alike_pictures_are_no_signal_from_the_start_and_a_collapse_later():
    alike = {**NO_ADVANTAGE, "picture_spread": 1e-4}
    (alarm,) = standing_alarms(rows(0, *[alike] * 5), CONFIG)
    assert alarm.name == "no-signal" and "sde.eta" in alarm.text
    assert "collapse" in names(standing_alarms(rows(10, *[alike] * 5), CONFIG))


def test_a_run_that_is_shorter_than_the_patience_is_judged_at_its_end():
    short = toy_config(iterations=2)
    assert standing_alarms(rows(0, NO_ADVANTAGE), short) == ()
    assert names(standing_alarms(rows(0, NO_ADVANTAGE, NO_ADVANTAGE), short)) == ["no-signal"]


def test_one_group_without_signal_or_one_bad_iteration_is_no_alarm():
    mixed = [NO_ADVANTAGE, NO_ADVANTAGE, {}, {"grad_norm": 0.5}, {"masked_scores": 16}, {}] * 5
    assert alarms_of(rows(5, *mixed), CONFIG) == ()


@pytest.mark.parametrize(
    "damage",
    [
        {"grad_norm": "x"},
        {"clip_fraction": 3},
        {"clip_fraction": ["x"]},
        {"iteration": None},
        {"masked_scores": {}},
        {"approx_kl": []},
    ],
)
def test_a_damaged_row_is_left_out(damage):
    damaged = [{**row, **damage} for row in rows(3)]
    assert alarms_of(damaged, CONFIG) == alarms_of([{}], CONFIG) == ()


def test_the_alarms_of_a_long_run_read_each_row_a_few_times():
    """Pages that watch a run ask for them again and again."""

    class Counted(dict):
        reads = 0

        def __getitem__(self, key):
            Counted.reads += 1
            return super().__getitem__(key)

        def get(self, key, default=None):
            Counted.reads += 1
            return super().get(key, default)

    reads = []
    for count in (200, 400):
        Counted.reads = 0
        alarms_of(list(map(Counted, rows(count))), CONFIG)
        reads.append(Counted.reads)
    assert reads[1] < 2.2 * reads[0]


def committed():
    for file in sorted(RESULTS.glob("**/*.json")):
        data = json.loads(file.read_text())
        if isinstance(data, dict) and "rows" in data and "run" in data:
            yield file, data


def test_gradients_ratios_and_clipping_of_no_committed_run_raise_an_alarm():
    """All runs of the study, also those of the sweep that learned too fast.

    Their rows hold nothing else that is judged: advantages and missing scores are put in.
    """
    judged = 0
    for file, data in committed():
        config = data["config"]
        epochs = config["optimizer"]["epochs"] if "optimizer" in config else 1
        settings = SimpleNamespace(
            iterations=len(data["rows"]),
            prompts_per_iteration=4,
            group_size=12,
            optimizer=SimpleNamespace(updates_per_rollout=1, epochs=epochs),
        )
        full = [
            {"iteration": i, "advantage_std": 0.9, "masked_scores": 0, **row}
            for i, row in enumerate(data["rows"])
        ]
        assert alarms_of(full, settings) == (), file
        judged += 1
    assert judged > 150


# Training


class Constant(Brightness):
    name = "constant"

    def score(self, images, examples):
        return RewardBatch.of(torch.ones(len(images)))


class Faint(Brightness):
    """Brightness, far too small."""

    def score(self, images, examples):
        return RewardBatch.of(super().score(images, examples).values * 1e-8)


def trained(reward=None, policy=None, **changes):
    events = []
    config = toy_config(**changes)
    trainer = Trainer(
        policy or ToyPolicy(), reward or Brightness(), PROMPTS, config, listener=events.append
    )
    try:
        trainer.train()
    except AlarmStop as error:
        events.append(error)
    return events, trainer


def raised(events):
    return [event.alarm.name for event in events if isinstance(event, AlarmRaised)]


def test_a_healthy_run_raises_no_alarm():
    events, _ = trained(iterations=12)
    assert raised(events) == []


@pytest.mark.parametrize(
    ("reward", "changes", "says"),
    [
        (Constant(), {}, "the same score"),
        (Faint(), {}, "a millionth"),
        (None, {"sde": SdeConfig(eta=1e-7)}, "pictures of a group are alike.*eta"),
    ],
)
def test_a_run_without_a_signal_says_so_once(reward, changes, says, caplog):
    events, _ = trained(reward, iterations=7, self_test=False, **changes)
    assert raised(events) == ["no-signal"]
    assert len([r for r in caplog.records if "no-signal after iteration 5" in r.message]) == 1
    assert any(__import__("re").search(says, record.message) for record in caplog.records)


def test_a_policy_that_large_steps_have_broken_is_told_of():
    steps = OptimizerConfig(learning_rate=1.0, max_grad_norm=1e6)
    stay = RunSettings(stop_on=())
    events, _ = trained(iterations=15, optimizer=steps, run=stay)
    assert {"collapse", "divergence", "no-signal"} & set(raised(events))


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(), ("no-signal",)])
def test_an_alarm_stops_the_run_with_a_checkpoint_if_it_shall(stops, tmp_path):
    folder = RunFolder(tmp_path)

    def run(reward, resume=False, **changes):
        config = toy_config(iterations=8, checkpoint_every=100, **changes)
        return run_experiment(
            ToyPolicy(), reward, PROMPTS[:3], PROMPTS[3:], config, folder,
            resume=resume, evaluation_seeds=1,
        )  # fmt: skip

    settings = RunSettings(stop_on=stops)
    if stops:
        with pytest.raises(AlarmStop, match="no-signal after iteration 5.*run.stop_on names"):
            run(Constant(), run=settings)
        assert folder.checkpoints.newest_state().iteration == 5
        outcome = run(Constant(), resume=True, run=RunSettings(stop_on=()))
        assert len(outcome.rows) == 8
    else:
        outcome = run(Constant(), run=settings)
    assert names(outcome.alarms) == ["no-signal"] and outcome.gain.mean == 0
    assert outcome.warnings[0].startswith("no-signal after iteration 5")
    assert outcome.warnings_json()["alarms"][0]["name"] == "no-signal"
    assert run_view(tmp_path)["alarms"] == [outcome.alarms[0].text]


def test_all_masked_as_a_reason_to_stop_does_not_wait():
    events = []
    config = toy_config(run=RunSettings(stop_on=("all-masked",)))
    with pytest.raises(NothingScored, match="all-masked"):
        Trainer(ToyPolicy(), FailsAfter(0), PROMPTS, config, listener=events.append).train()
    assert not any(isinstance(event, RewardWait) for event in events)


def test_names_of_alarms_are_checked_and_kept():
    config = toy_config(run=RunSettings(stop_on=("collapse", "no-signal")))
    assert TrainConfig.of(json.loads(json.dumps(config.flat()))) == config
    for wrong in (("no_signal",), "collapse", (1,), None, ["collapse"]):
        with pytest.raises(ValueError, match=f"run.stop_on is .* a list of {', '.join(ALARMS)}"):
            RunSettings(stop_on=wrong)


def test_the_spread_of_pictures_is_a_column():
    events, _ = trained(iterations=1)
    (row,) = [event.metrics for event in events if isinstance(event, IterationEnd)]
    assert 0.01 < row["picture_spread"] < 0.5
