"""Watching a run: held-out measurements on the way, the newest group, an early end, its folder."""

from __future__ import annotations

import json

import numpy
import pytest
import torch
from fakes import PROMPTS, Brightness, Broken, ToyPolicy, toy_config
from PIL import Image
from small_runs import without_seconds

from chunk_grpo_core.measure.evaluate import evaluate, paired_gain
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.runs.outcome import EVALUATION_SEED
from chunk_grpo_core.runs.view import run_names, run_view
from chunk_grpo_core.train.checkpoint import Checkpoints
from chunk_grpo_core.train.config import OptimizerConfig
from chunk_grpo_core.train.events import (
    AdvantagesEnd,
    HeldOutEnd,
    IterationEnd,
    RolloutEnd,
    RunEnd,
    RunStart,
)
from chunk_grpo_core.train.trainer import Trainer
from chunk_grpo_core.watch.history import HeldOutWriter, read_metrics
from chunk_grpo_core.watch.newest_group import LatestGroup, read_group

HELD_OUT = ("new", "newer", "newest")


def experiment(path, policy=None, **options):
    config = options.pop("config", toy_config(iterations=4, evaluate_every=2))
    reward = options.pop("reward", Brightness())
    folder = RunFolder(path)
    return run_experiment(
        policy or ToyPolicy(), reward, PROMPTS, HELD_OUT, config, folder, **options
    )


# Held-out measurements


@pytest.mark.slow
def test_held_out_prompts_are_measured_on_the_way_and_training_does_not_notice(tmp_path):
    watched = experiment(tmp_path / "watched")
    alone = experiment(tmp_path / "alone", config=toy_config(iterations=4))
    assert without_seconds(watched.rows) == without_seconds(alone.rows)
    rows = read_metrics(tmp_path / "watched" / "held_out.jsonl")
    assert [row["iterations"] for row in rows] == [0, 2, 4]
    assert [row["iterations"] for row in read_metrics(tmp_path / "alone" / "held_out.jsonl")] == [
        0,
        4,
    ]
    assert rows[0]["mean"] == rows[0]["low"] == rows[0]["high"] == watched.before.mean
    gain = paired_gain(watched.before, watched.after)
    assert rows[2]["mean"] == watched.after.mean
    assert rows[2]["low"] == pytest.approx(watched.before.mean + gain.low)
    assert rows[2]["high"] == pytest.approx(watched.before.mean + gain.high)


def test_a_measurement_on_the_way_is_that_of_a_run_which_ends_there(tmp_path):
    experiment(tmp_path)
    policy, config = ToyPolicy(), toy_config(iterations=2)
    Trainer(policy, Brightness(), PROMPTS, config).train()
    found = evaluate(policy, Brightness(), HELD_OUT, config.grid, seeds=4, seed=EVALUATION_SEED)
    assert read_metrics(tmp_path / "held_out.jsonl")[1]["mean"] == found.mean


@pytest.mark.slow
def test_resuming_measures_again_only_what_is_not_known(tmp_path):
    whole = experiment(tmp_path / "whole")

    def stop_in_the_third(event):
        if isinstance(event, RolloutEnd) and event.iteration == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        experiment(tmp_path / "cut", listener=stop_in_the_third)
    rows = read_metrics(tmp_path / "cut" / "held_out.jsonl")
    assert [row["iterations"] for row in rows] == [0, 2]
    again = experiment(tmp_path / "cut", resume=True)
    assert without_seconds(again.rows) == without_seconds(whole.rows)
    files = [tmp_path / name / "held_out.jsonl" for name in ("cut", "whole")]
    assert files[0].read_text() == files[1].read_text()


def test_rows_of_iterations_that_will_be_redone_are_dropped(tmp_path):
    write = HeldOutWriter(tmp_path / "held_out.jsonl")
    for iterations in (0, 2, 4):
        write(HeldOutEnd(iterations, 0.5, 0.4, 0.6))
    write(RunStart(3, 10))
    write(HeldOutEnd(2, 0.7, 0.6, 0.8))
    rows = read_metrics(write.path)
    assert [(row["iterations"], row["mean"]) for row in rows] == [(0, 0.5), (2, 0.7)]


def test_a_negative_interval_is_refused():
    with pytest.raises(
        ValueError, match="evaluate_every is -1; it must be a whole number from 0 to 1000000"
    ):
        toy_config(evaluate_every=-1)


# An early end


class StopAt:
    """Wishes for the end from the n-th question on."""

    def __init__(self, questions):
        self.left = questions

    def __call__(self):
        self.left -= 1
        return self.left < 0


def test_stopping_keeps_whole_iterations_and_measures_them(tmp_path):
    wanted = []

    def stop_in_the_third(event):
        if isinstance(event, RolloutEnd) and event.iteration == 2:
            wanted.append(True)

    events = []
    outcome = experiment(
        tmp_path / "stopped",
        listener=lambda event: (events.append(event), stop_in_the_third(event)),
        wants_stop=lambda: bool(wanted),
        config=toy_config(iterations=50),
    )
    # Both groups of the third iteration were scored already: its updates are done.
    assert len(outcome.rows) == 3
    assert events[-1] == RunEnd(3, stopped=True)
    expected = experiment(tmp_path / "short", config=toy_config(iterations=3))
    assert without_seconds(outcome.rows) == without_seconds(expected.rows)
    assert torch.equal(outcome.after.rewards, expected.after.rewards)
    checkpoints = [RunFolder(tmp_path / name).checkpoints.load() for name in ("stopped", "short")]
    assert all(
        torch.equal(value, checkpoints[1].adapter[name])
        for name, value in checkpoints[0].adapter.items()
    )


def test_a_wish_during_a_rollout_ends_it_at_once(tmp_path):
    policy = ToyPolicy()

    def listen(event):
        if isinstance(event, IterationEnd):
            policy.calls.clear()

    checkpoints = Checkpoints(tmp_path)
    trainer = Trainer(
        policy,
        Brightness(),
        PROMPTS,
        toy_config(iterations=50),
        checkpoints=checkpoints,
        listener=listen,
        wants_stop=lambda: len(policy.calls) == 2,
    )
    trainer.train()
    assert trainer.iteration == 1 and checkpoints.load().iteration == 1
    assert len(policy.calls) == 2  # of the 12 that a rollout has


def test_one_iteration_is_always_done(tmp_path):
    outcome = experiment(tmp_path, wants_stop=lambda: True)
    assert len(outcome.rows) == 1
    assert outcome.plot().shape[2] == 3


@pytest.mark.slow
@pytest.mark.parametrize("questions", [7, 13, 19, 26])
def test_a_stopped_run_goes_on_to_the_numbers_of_one_that_was_not(questions, tmp_path):
    whole = experiment(tmp_path / "whole")
    cut = experiment(tmp_path / "cut", wants_stop=StopAt(questions))
    assert 1 <= len(cut.rows) < 4
    again = experiment(tmp_path / "cut", resume=True)
    assert without_seconds(again.rows) == without_seconds(whole.rows)
    assert torch.equal(again.after.rewards, whole.after.rewards)


def test_the_average_is_the_result_of_a_stopped_run_too(tmp_path):
    policy = ToyPolicy()
    config = toy_config(iterations=9, optimizer=OptimizerConfig(learning_rate=0.05, ema_decay=0.5))
    experiment(tmp_path / "a", policy, config=config, wants_stop=StopAt(20))
    last = RunFolder(tmp_path / "a").checkpoints.load()
    names = list(last.adapter)
    averages = [last.optimizer[f"ema.{index}"] for index in range(len(names))]
    state = policy.adapter.state_dict()
    assert all(torch.equal(state[n], average) for n, average in zip(names, averages, strict=True))


# The newest group


def rolled_out(iteration, size=4, pixels=8, rewards=None, prompt="a cat"):
    images = torch.linspace(0, 1, size)[:, None, None, None].expand(size, pixels, pixels, 3)
    rewards = torch.arange(size).float() if rewards is None else torch.tensor(rewards)
    return RolloutEnd(iteration, Example(prompt), images, rewards)


def test_the_newest_group_lies_in_the_folder_with_its_numbers(tmp_path):
    keep = LatestGroup(tmp_path)
    keep(rolled_out(3, rewards=[0.5, float("nan"), 0.25, 1.0]))
    keep(rolled_out(3, prompt="a dog"))  # only the first group of an iteration is kept
    advantages = torch.tensor([0.1, 0.0, -0.5, 1.5])
    keep(AdvantagesEnd(3, (advantages, -advantages)))
    group = read_group(tmp_path)
    assert (group["iteration"], group["prompt"]) == (3, "a cat")
    assert [s["reward"] for s in group["samples"]] == [0.5, None, 0.25, 1.0]
    assert [s["advantage"] for s in group["samples"]] == pytest.approx(advantages.tolist())
    for level, sample in zip((0, 85, 170, 255), group["samples"], strict=True):
        assert numpy.array(Image.open(tmp_path / sample["file"])).flatten()[0] == level


def test_files_of_the_group_before_stay_for_one_iteration(tmp_path):
    keep, seen = LatestGroup(tmp_path), []
    for iteration in range(3):
        keep(rolled_out(iteration))
        keep(AdvantagesEnd(iteration, (torch.zeros(4),)))
        seen.append({sample["file"] for sample in read_group(tmp_path)["samples"]})
    files = {path.name for path in tmp_path.glob("*.png")}
    assert files == seen[1] | seen[2]


def test_large_pictures_are_kept_as_jpeg(tmp_path):
    keep = LatestGroup(tmp_path)
    keep(rolled_out(0, size=2, pixels=300))
    keep(AdvantagesEnd(0, (torch.zeros(2),)))
    with Image.open(tmp_path / read_group(tmp_path)["samples"][1]["file"]) as picture:
        assert picture.format == "JPEG" and picture.size == (300, 300)


def test_a_group_that_was_cancelled_is_forgotten(tmp_path):
    keep = LatestGroup(tmp_path)
    keep(rolled_out(0, prompt="cancelled"))
    keep(rolled_out(1, prompt="whole"))
    keep(AdvantagesEnd(1, (torch.zeros(4),)))
    assert read_group(tmp_path)["prompt"] == "whole"


# The folder


def test_the_view_of_a_run_repeats_its_files(tmp_path):
    experiment(tmp_path / "run_a", reward=Broken([0]))
    view = run_view(tmp_path / "run_a")
    json.dumps(view, allow_nan=False)
    rows = read_metrics(tmp_path / "run_a" / "metrics.jsonl")
    for shown, row in zip(view["rows"], rows, strict=True):
        assert shown == {name: row[name] for name in shown}
        assert {"reward_mean", "reward_std", "clip_fraction", "approx_kl", "seconds"} <= set(shown)
    assert view["held_out"] == read_metrics(tmp_path / "run_a" / "held_out.jsonl")
    assert (view["name"], view["reward"], view["model"]) == ("run_a", "broken", "toy")
    assert (view["iterations"], view["done"], view["plan"]) == (4, 4, [1, 2, 2])
    assert view["is_measured"]
    assert view["group"]["iteration"] == 3 and view["group"]["samples"][0]["reward"] is None
    assert [row["iteration"] for row in run_view(tmp_path / "run_a", since=3)["rows"]] == [3]


def test_a_killed_run_can_be_viewed(tmp_path):
    def kill(event):
        if isinstance(event, RolloutEnd) and event.iteration == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        experiment(tmp_path, listener=kill)
    view = run_view(tmp_path)
    assert (view["done"], view["is_measured"]) == (1, False)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        run_view(tmp_path / "nothing")


def test_runs_are_listed_newest_first(tmp_path):
    assert run_names(tmp_path) == []
    for name in ("b", "a", "c"):
        experiment(tmp_path / name, config=toy_config(iterations=1))
    (tmp_path / "no run").mkdir()
    assert run_names(tmp_path) == ["c", "a", "b"]
    assert run_names(tmp_path, limit=1) == ["c"]
