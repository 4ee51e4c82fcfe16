"""The study in benchmarks/chunk_vs_step: what it runs, and what it makes of the results."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.chunk_vs_step.analysis import OtherRun, Study, analyse, best_rates
from benchmarks.chunk_vs_step.checks import pilot_pairs
from benchmarks.chunk_vs_step.design import (
    ALONE,
    CHOOSING,
    GRID,
    OTHERS,
    PRIMARY,
    REGIMES,
    SWEPT_RATES,
    TESTING,
    TRAINING,
    UPDATES,
    Run,
    _expected_steps,
    config_of,
    main_runs,
    plan_of,
    sweep_runs,
)
from benchmarks.chunk_vs_step.report import read_study, write_report
from benchmarks.chunk_vs_step.stats import compare, holm
from benchmarks.chunk_vs_step.words import best_arms, pilot_sentence, summary, verdict
from chunk_grpo_core.method.chunks import ChunkPlan, draw_chunks
from chunk_grpo_core.method.dynamics import DynamicsCurve
from chunk_grpo_core.method.noise import derive_seed

pytestmark = pytest.mark.slow  # all of it together

MEASURES = ("reward", "strict", "clean", "grid", "saturation")
RATES = {(arm, regime): SWEPT_RATES[1] for arm in PRIMARY for regime in REGIMES}


def curve(rule="flow"):
    """A bent curve over 17 steps."""
    mean = tuple(0.3 + 0.4 * math.exp(-step / 3) + 0.02 * (step % 3) for step in range(17))
    return DynamicsCurve(
        mean=mean,
        std=(0.01,) * 17,
        prompts=8,
        samples=96,
        sigmas=GRID.sigmas,
        rule=rule,
        eta=0.7,
        model="tiny-flux",
    )


def result_of(run, gain):
    """What a run would write if it had gained ``gain`` on every measure."""
    rollouts = UPDATES // REGIMES[run.regime]
    row = {"clip_fraction": [0.1 if run.regime == "off" else 0.0, None]}
    rise = [{**row, "reward_mean": 0.7 + 0.001 * i * (1 + run.seed % 3)} for i in range(rollouts)]
    return {
        "run": asdict(run),
        "trained_passes": 15_000 + run.seed,
        "seconds": 100.0 + run.seed,
        "ratio_error_first_update": 0.0,
        "rows": rise,
        "held_out": {name: [0.5 + gain, 0.7 + gain] for name in MEASURES},
    }


def noise_of(run):
    """A number in -0.5..0.5 that looks random and is the run's own."""
    return derive_seed(run.name) / 2**63 - 0.5


def gain_of(run):
    """Chunk is clearly above step, the middle rate is the best, the rest is noise."""
    by_rate = 0.02 if run.learning_rate == SWEPT_RATES[1] else 0.0
    return 0.03 * (run.arm == "chunk") + by_rate + 0.01 * noise_of(run)


def study_of(runs, gain=gain_of, pilot=()):
    base = {name: [0.5, 0.7] for name in MEASURES}
    return Study(
        base={"sweep": base, "main": base},
        curves={rule: curve(rule).to_json() for rule in ("flow", "dance", "cps", "ode")},
        runs={run.name: result_of(run, gain(run)) for run in runs},
        pilot={run.name: result_of(run, gain(run)) for run in pilot},
    )


def write_study(folder, study):
    for name, data in {"base.json": study.base, "curves.json": study.curves}.items():
        (folder / name).write_text(json.dumps(data))
    for place, runs in {"runs": study.runs, "pilot": study.pilot}.items():
        (folder / place).mkdir()
        for name, data in runs.items():
            (folder / place / f"{name}.json").write_text(json.dumps(data))


def test_settings_are_those_of_the_protocol():
    assert (len(TRAINING), len(CHOOSING), len(TESTING)) == (336, 48, 96)
    assert not (set(TRAINING) & set(CHOOSING)) and not (set(TESTING) & {*TRAINING, *CHOOSING})
    sweep, main = sweep_runs(), main_runs(RATES)
    assert len(sweep) == 24 and len({run.name for run in [*sweep, *main]}) == 24 + len(main)
    assert {run.seed for run in sweep} == {100, 101}
    seeds = {}
    for run in main:
        seeds.setdefault((run.arm, run.regime), []).append(run.seed)
    expected = {(arm, regime): list(range(10)) for arm in PRIMARY for regime in REGIMES}
    expected |= {(arm, regime): list(range(5)) for arm in OTHERS for regime in REGIMES}
    expected |= {(arm, "on"): list(range(5)) for arm in ALONE}
    del expected["control", "on"]
    expected["control", "off"] = list(range(10))
    assert seeds == expected


def test_every_arm_but_step_takes_the_rate_of_chunk():
    rates = {("step", "on"): 1.0, ("step", "off"): 2.0, ("chunk", "on"): 3.0, ("chunk", "off"): 4.0}
    for run in main_runs(rates):
        assert run.learning_rate == rates["step" if run.arm == "step" else "chunk", run.regime]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("arm", [*PRIMARY, *OTHERS, *ALONE])
def test_every_arm_costs_the_same(arm, regime):
    config = config_of(Run(arm, regime, 0, 1e-3), curve())
    drawn = draw_chunks(config.plan, config.chunk_fraction, 20_000, seed=1)
    steps = float((drawn * torch.tensor(config.plan.sizes)).sum(1).float().mean())
    updates = config.iterations * config.optimizer.epochs
    passes = updates * config.prompts_per_iteration * config.group_size * steps
    target = 54 * 24 * (4 if arm in ALONE else 8)
    half_a_rollout = 0.5 * passes / config.iterations
    assert passes == pytest.approx(target, abs=half_a_rollout + 0.01 * target)
    assert config.optimizer.updates_per_rollout == 1
    if arm in (*ALONE, "step", "chunk", "equal", "whole"):
        assert updates == 54


@pytest.mark.parametrize(
    ("plan", "fraction"),
    [
        (ChunkPlan((2, 3, 4, 7)), 0.5),
        (ChunkPlan((2, 3, 4, 7), (0.5, 0.3, 0.15, 0.05)), 0.5),
        (ChunkPlan((1, 5, 10), (0.0, 2.0, 1.0)), 0.5),
        (ChunkPlan((16,)), 0.5),
        (plan_of("adaptive", curve()), 0.5),
    ],
    ids=lambda value: str(getattr(value, "sizes", value)),
)
def test_expected_steps_are_what_drawing_gives(plan, fraction):
    drawn = draw_chunks(plan, fraction, 40_000, seed=3)
    steps = (drawn * torch.tensor(plan.sizes)).sum(1).double()
    error = float(steps.std()) / math.sqrt(len(steps))
    assert abs(float(steps.mean()) - _expected_steps(plan, fraction)) <= 4 * error


def test_the_rate_with_the_best_mean_is_chosen_once_its_sweep_is_finished():
    runs = sweep_runs()
    assert best_rates(study_of(runs)) == RATES
    best = {("step", "on"): 0.1, ("chunk", "off"): 0.2}  # of the lowest and the highest rate
    low, high = SWEPT_RATES[0], SWEPT_RATES[-1]

    def gain(run):
        at_edge = run.learning_rate == (low if run.arm == "step" else high)
        return gain_of(run) + best.get((run.arm, run.regime), 0.0) * at_edge

    found = analyse(study_of(runs, gain)).sweep
    chosen = {(row.arm, row.regime): (row.rate, row.at_edge) for row in found if row.chosen}
    assert chosen == {
        ("step", "on"): (low, True),
        ("step", "off"): (SWEPT_RATES[1], False),
        ("chunk", "on"): (SWEPT_RATES[1], False),
        ("chunk", "off"): (high, True),
    }
    assert len(best_rates(study_of(runs[1:]))) == 3


def test_a_finished_study_is_analysed_in_the_families_of_the_protocol():
    found = analyse(study_of([*sweep_runs(), *main_runs(RATES)]))
    assert found.done == found.planned == 24 + 40 + 55 + 20 + 5
    assert [(c.arm, c.against, c.regime) for c in found.primary] == [
        ("chunk", "step", "on"),
        ("chunk", "step", "off"),
    ]
    assert all(len(c.seeds) == 10 and c.is_found for c in found.primary)
    low, high = sorted(found.primary, key=lambda c: c.p)
    assert low.corrected_p == pytest.approx(2 * low.p)
    assert high.corrected_p == pytest.approx(max(2 * low.p, high.p))
    tests = {(c.arm, c.against, c.regime) for c in found.secondary}
    assert len(tests) == len(found.secondary) == 22
    assert ("control", "step", "off") in tests and ("control", "step", "on") not in tests
    smallest = min(found.secondary, key=lambda c: c.p)
    assert smallest.corrected_p == pytest.approx(22 * smallest.p)


def test_every_p_is_also_corrected_for_all_28_tests_of_the_three_families():
    def gain(run):
        return gain_of(run) + 0.02 * noise_of(replace(run, arm="any"))

    found = analyse(study_of([*sweep_runs(), *main_runs(RATES)], gain))
    every = [*found.primary, *found.secondary, *found.alone]
    assert found.tests == len(every) == 28
    assert [c.p_of_all for c in every] == pytest.approx(holm([c.p for c in every]))
    assert all(c.p_of_all >= c.corrected_p for c in every)
    few = analyse(study_of([*sweep_runs(), *(r for r in main_runs(RATES) if r.arm in PRIMARY)]))
    assert few.tests == 28 and len(few.secondary) == 0
    assert min(c.p_of_all for c in few.primary) == pytest.approx(28 * min(c.p for c in few.primary))


def test_long_comparisons_are_shown_by_halves_of_the_seeds():
    found = analyse(study_of([*sweep_runs(), *main_runs(RATES)]))
    assert [(c.arm, c.against, c.regime, c.seeds) for c in found.halves] == [
        (*test, half)
        for test in [
            ("chunk", "step", "on"),
            ("chunk", "step", "off"),
            ("control", "step", "off"),
            ("control", "chunk", "off"),
        ]
        for half in [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    ]
    whole = found.primary[0].difference.values
    halves = [c.difference.values for c in found.halves[:2]]
    assert halves == [whole[:5], whole[5:]]


def test_runs_of_the_pilot_are_paired_where_only_the_plan_differs_and_regimes_stay_apart():
    def run(arm, rate, seed=1, regime="on"):
        return {"arm": arm, "regime": regime, "seed": seed, "learning_rate": rate, "sweep": True}

    pairs = pilot_pairs(
        {
            "a/1": (run("chunk", 1e-3), 0.3),
            "a/2": (run("step", 1e-3), 0.1),
            "b/1": (run("step", 1e-3), 0.0),  # of another pilot
            "a/3": (run("chunk", 1e-3, seed=2), 0.5),
            "a/4": (run("chunk", 2e-3), -0.4),
            "a/5": (run("step", 2e-3), -0.1),
            "c/1": (run("chunk", 1e-3, regime="off"), 0.0),
            "c/2": (run("step", 1e-3, regime="off"), 0.5),
        }
    )
    assert [(p.folder, p.rate, p.seed) for p in pairs] == [
        ("a", 1e-3, 1),
        ("a", 2e-3, 1),
        ("c", 1e-3, 1),
    ]
    assert [p.difference for p in pairs] == pytest.approx([0.2, -0.3, -0.5])
    runs = tuple(OtherRun(name=f"pilot/{gain}", updates=30, gain=gain) for gain in (0.3, -0.4))
    found = replace(analyse(study_of(sweep_runs()[:1])), pilot=pairs, others=runs)
    text = pilot_sentence(found)
    assert (
        "On-policy, at rates up to 0.001, the mean difference `chunk` - `step` is +0.20000 (1 "
        in text
    )
    assert (
        "Off-policy, at rates up to 0.001, the mean difference `chunk` - `step` is -0.50000" in text
    )
    assert "`chunk` higher in 1)" in text and "lowest gain of a run of the pilot is -0.40" in text
    assert pilot_sentence(replace(found, pilot=())) == ""


def test_the_best_arm_is_named_for_reward_and_for_strict_accuracy_apart():
    study = study_of([*sweep_runs(), *main_runs(RATES)])
    for run in study.runs.values():
        if run["run"]["arm"] == "step":
            run["held_out"]["strict"] = [0.9, 1.0]
    found = analyse(study)
    assert re.search(
        r"reward is that of `chunk` \(\+0.05\d\d\), in strict accuracy that of `step` \(\+0.3500\)",
        best_arms(found, "off"),
    )


def test_a_chunk_alone_is_compared_with_the_mean_of_the_other_three():
    gain = {"alone 1": 0.1, "alone 2": 0.2, "alone 3": 0.3, "alone 4": 0.6}
    found = analyse(
        study_of(
            [*sweep_runs(), *main_runs(RATES)],
            lambda run: gain.get(run.arm, gain_of(run)) + 1e-3 * noise_of(run),
        )
    ).alone
    means = [c.difference.mean for c in found]
    expected = [0.1 - 1.1 / 3, 0.2 - 1.0 / 3, 0.3 - 0.3, 0.6 - 0.2]
    assert means == pytest.approx(expected, abs=1e-3)
    assert [c.is_found for c in found] == [True, True, False, True]


def test_the_verdict_follows_the_numbers():
    high = {
        ("a", "on"): dict(enumerate([0.1, 0.11, 0.12])),
        ("b", "on"): dict.fromkeys(range(3), 0.0),
    }
    (found,) = compare(high, [("a", "b", "on")])
    assert verdict(found) == "a is higher"
    (found,) = compare(high, [("b", "a", "on")])
    assert verdict(found) == "b is lower"
    noise = {("a", "on"): dict(enumerate([0.1, -0.1])), ("b", "on"): dict.fromkeys(range(2), 0.0)}
    (found,) = compare(noise, [("a", "b", "on")])
    assert verdict(found) == "not found; below -1.2706 and above +1.2706 is ruled out"
    (found,) = compare(high, [("a", "b", "on"), *[("c", "b", "on")] * 20])
    assert found.p < 0.05 and verdict(found) == "not found after correction"
    (found,) = compare({key: {0: 0.1} for key in noise}, [("a", "b", "on")])
    assert verdict(found) == "too few runs for a test"


def test_a_study_half_done_has_a_report_with_all_files(tmp_path):
    main = main_runs(RATES)
    stray = Run("chunk", "on", 0, 0.5)
    done = [*sweep_runs(), *(r for r in main if r.seed < 2 and r.arm != "alone 4"), stray]
    study = study_of(done, pilot=[Run("step", "on", 3, 0.25)])
    write_study(tmp_path, study)
    assert (read_study(tmp_path).runs, read_study(tmp_path).pilot) == (study.runs, study.pilot)
    found = write_report(tmp_path)
    text = (tmp_path / "REPORT.md").read_text()
    missing = len(main) - len(done) + 25
    assert f"{missing} are missing" in text and summary(found) in text
    assert [run.name for run in found.others] == ["pilot/step-on-lr0.25-seed3", stray.name]
    assert all(run.name in text for run in found.others)
    assert found.alone == () and len(found.secondary) == 22
    pictures = sorted(path.stem for path in tmp_path.glob("*.png"))
    assert pictures == ["alone", "curves", "differences", "gains", "learning"]
    assert all(f"({name}.png)" in text for name in pictures)
    data = json.loads((tmp_path / "summary.json").read_text())
    assert data["planned"] == 144 and len(data["arms"]) == 2 + 5 + 3 + 2 + 6


def test_a_study_just_begun_has_a_report(tmp_path):
    write_study(tmp_path, study_of(sweep_runs()[:3]))
    (tmp_path / "gains.png").write_bytes(b"of an earlier report")
    found = write_report(tmp_path)
    assert (found.done, found.arms, found.primary) == (3, (), ())
    assert [path.name for path in tmp_path.glob("*.png")] == ["curves.png"]
    assert "141 are missing" in (tmp_path / "REPORT.md").read_text()


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no base.json, so no study was begun there"):
        read_study(tmp_path)
