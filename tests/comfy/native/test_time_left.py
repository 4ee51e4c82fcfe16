"""What a running training says of the time that is left."""

from __future__ import annotations

import types

import pytest


@pytest.fixture
def clock(lab, monkeypatch):
    """Give what the clock of the monitor shows, in seconds: a list with one number."""
    now = [100.0]
    time = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(lab.module("nodes.bridge.monitor"), "time", time)
    return now


@pytest.fixture
def told(lab):
    """Give the monitor, the events that it hears, and settings of so many iterations."""
    core = lab.module("chunk_grpo_core")

    def config_of(iterations):
        plan = core.read_plan("step", 4)
        return core.TrainConfig(
            grid=core.shifted_grid(5, shift=3.0), plan=plan, iterations=iterations
        )

    events = lab.module("chunk_grpo_core.train.events")
    return lab.module("nodes.bridge.monitor"), events, config_of


def test_loading_a_model_does_not_count_as_measuring(told, clock):
    """Ten seconds pass before the first piece, then each quarter of the measurement takes one."""
    monitor, events, config_of = told
    config = config_of(2)
    run = monitor.LiveRun("run", monitor.Asker(), config, held_out=4)

    def left_after(seconds, event):
        clock[0] += seconds
        run.listen(event)
        return run.status()["seconds_left"]

    assert left_after(10, events.EvaluationProgress("before", 0.25)) is None, "nothing is known"
    a_quarter_less = [
        left_after(1, events.EvaluationProgress("before", part)) for part in (0.5, 0.75, 1.0)
    ]
    assert a_quarter_less[0] - a_quarter_less[1] == pytest.approx(1)
    assert a_quarter_less[1] - a_quarter_less[2] == pytest.approx(1)
    left_after(0, events.RunStart(0, 2))
    left_after(5, events.IterationEnd(0, {"seconds": {"total": 5.0}}))
    assert run.status()["seconds_left"] == pytest.approx(5 + 4), "an iteration, a measurement"


def test_a_reward_that_asks_the_model_counts_in_measurement_and_iteration(lab, told, clock):
    monitor, events, config_of = told
    config = config_of(1)
    follows = lab.module("chunk_grpo_core.rewards").load_reward("follows_prompt")
    pictures = config.prompts_per_iteration * config.group_size

    def iteration(reward):
        run = monitor.LiveRun("run", monitor.Asker(), config, pictures, reward)
        run.listen(events.EvaluationProgress("before", 0.5))
        clock[0] += 0.5
        run.listen(events.EvaluationProgress("before", 1.0))  # a measurement takes a second
        return run.status()["seconds_left"] - 1.0  # the one afterwards

    steps, judged = config.grid.steps, follows.units_per_picture
    units = lab.module("chunk_grpo_core.presets.cost").units_of(config).total
    assert iteration(None) == pytest.approx(units / steps)
    assert iteration(follows) == pytest.approx((units + judged) / (steps + judged))


def test_the_first_rollouts_tell_what_an_iteration_takes_before_it_has_ended(lab, told, clock):
    """A measurement takes ten seconds, and so nothing is left of its price per call."""
    monitor, events, config_of = told
    config = config_of(3)
    units = lab.module("chunk_grpo_core.presets.cost").units_of(config)

    def left(waits):
        run = monitor.LiveRun("run", monitor.Asker(), config, held_out=4)
        clock[0] += 10
        run.listen(events.RunStart(0, 3))
        run.listen(events.PhaseProgress(0, "rollout", 0.0))
        clock[0] += 2
        if waits:
            run.listen(events.RewardWait("iteration 1", "no answer", 1, 3, 2.0))
        run.listen(events.PhaseProgress(0, "score", 0.4))
        clock[0] += 1
        run.listen(events.PhaseProgress(0, "update", 0.6))
        return run, run.status()["seconds_left"]

    iteration = 2 * units.total / units.rollout + 1
    run, first = left(waits=False)
    assert first == pytest.approx(2.4 * iteration + 10)
    pictures = config.prompts_per_iteration * config.group_size
    by_measurement = 10 * pictures * units.total / (4 * config.grid.steps)
    assert left(waits=True)[1] == pytest.approx(2.4 * by_measurement + 10), "waiting is no work"
    for index, seconds in enumerate((9.0, 5.0)):
        run.listen(events.IterationEnd(index, {"seconds": {"total": seconds}}))
    assert run.status()["seconds_left"] == pytest.approx(5 + 10), "the first one warmed up"
