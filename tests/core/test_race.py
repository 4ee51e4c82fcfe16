"""The race in benchmarks/race: how work is counted, how it chooses, what it makes of its rows."""

from __future__ import annotations

import json
import math
from itertools import islice

import pytest
import torch

from benchmarks.race.arms import ARMS, config_of
from benchmarks.race.network import kernel_distance
from benchmarks.race.outcomes import at_units, chosen_candidate, reached, winner
from benchmarks.race.report import write_report
from benchmarks.race.run import Run, marks, perform
from benchmarks.race.units import CountedPolicy
from benchmarks.race.worlds import FORM, FORM_WEIGHTS
from benchmarks.tiny import patch_grid
from chunk_grpo_core.algorithms import algorithm_of
from chunk_grpo_core.models.tiny.render import render
from chunk_grpo_core.models.tiny.reward import TinyWorldReward
from chunk_grpo_core.models.tiny.world import HELD_OUT, caption
from tests.fakes import ToyPolicy

BASE = {"reward": 0.68, "clean": 0.53, "strict": 0.2, "velocity_ratio": 1.0}
BASE |= dict.fromkeys(("grid", "saturation", "diversity", "kid", "moved"), 0.1)


def curve(*rewards, clean=0.55):
    """Measurements every 12,000 units, the base model's first."""
    later = [
        {**BASE, "units": 12_000 * k, "seconds": 30.0 * k, "reward": reward, "clean": clean}
        for k, reward in enumerate(rewards, 1)
    ]
    return [{**BASE, "units": 0, "seconds": 0.0}, *later]


def test_a_sample_with_gradients_counts_three_times():
    policy = CountedPolicy(ToyPolicy())
    x_t = torch.zeros(5, *policy.latent_shape)
    with torch.no_grad():
        policy.run(lambda velocity: velocity(x_t, 0.5, "a"))
    assert policy.units == 5
    policy.run(lambda velocity: velocity(x_t[:2], 0.5, "a"))
    assert policy.units == 5 + 3 * 2


@pytest.mark.parametrize("name", ARMS)
def test_every_candidate_of_an_arm_is_a_training_that_its_algorithm_takes(name):
    configs = [config_of(ARMS[name], k, seed=7) for k in range(len(ARMS[name].candidates))]
    assert len(set(map(str, configs))) == len(configs), "two candidates are the same"
    for config in configs:
        algorithm_of(config)
        assert config.seed == 7
        assert (config.lora.rank, config.lora.alpha) == (16, 32.0)


def test_all_arms_but_the_demo_have_equally_many_candidates():
    assert {len(arm.candidates) for name, arm in ARMS.items() if name != "demo"} == {4}


def test_measurements_are_dense_at_first():
    due = list(islice(marks(Run("demo", 0, 0, 72_000)), 9))
    assert due == [2000, 4000, 6000, 8000, 10_000, 12_000, 16_000, 20_000, 24_000]
    assert list(marks(Run("awm", 0, 100, 9_000, screening=True))) == [6_000]


def test_a_reward_is_reached_by_the_mean_of_two_measurements():
    rows = curve(0.76, 0.74, 0.77)
    assert reached(rows, 0.75, running=False) == 12_000
    assert reached(rows, 0.75) == 24_000
    assert reached(rows, 0.755) == 36_000
    assert reached(rows, 0.755, "seconds") == 90.0
    assert reached(rows, 0.76) == math.inf


def test_a_value_is_that_of_the_first_measurement_from_there_on():
    rows = curve(0.7, 0.8)
    assert at_units(rows, 12_001, "reward") == 0.8
    assert at_units(rows, 24_001, "reward") is None


def test_a_candidate_that_spoils_pictures_is_not_chosen():
    spoils, clean = curve(0.8, 0.8, clean=0.50)[1:], curve(0.7, 0.72)[1:]
    assert chosen_candidate([clean, spoils, curve(0.6, 0.7)[1:]], BASE) == 0
    assert chosen_candidate([curve(0.7, 0.7, clean=0.3)[1:], spoils], BASE) == 1


def test_the_winner_is_clean_first_then_cheap_then_better():
    slow, cheap = [curve(0.7, 0.76, 0.8)] * 3, [curve(0.77, 0.78, 0.80)] * 3
    better, spoils = [curve(0.77, 0.79, 0.80)] * 3, [curve(0.9, 0.9, 0.9, clean=0.505)] * 3
    assert winner({"slow": slow, "cheap": cheap}, BASE) == "cheap"
    assert winner({"cheap": cheap, "better": better, "spoils": spoils}, BASE) == "better"
    assert winner({"spoils": spoils, "short": [curve(0.8)]}, BASE) is None


def test_blocks_are_seen_and_flat_shapes_are_not():
    tiles = torch.arange(64).div(8, rounding_mode="floor") % 2 * (10 / 255)
    blocks = tiles[None, :, None, None].expand(1, 64, 64, 3) + tiles[None, None, :, None]
    assert patch_grid(blocks).item() == pytest.approx(10, abs=1e-4)
    assert abs(patch_grid(render(HELD_OUT, 0)).mean().item()) < 1.5


def test_the_kernel_distance_is_unbiased_and_sees_a_shift():
    generator = torch.Generator().manual_seed(0)

    def sample():
        return torch.randn(50, 8, generator=generator)

    equal = torch.tensor([kernel_distance(sample(), sample()) for _ in range(40)])
    assert abs(equal.mean()) < 3 * equal.std() / 40**0.5
    assert kernel_distance(sample(), sample() + 1) > 10 * equal.std()


def test_the_second_world_rewards_neither_colour_nor_cleanliness():
    captions = [caption(scene) for scene in HELD_OUT[:8]]
    pictures = render(HELD_OUT[:8], 1)
    form, whole = (judge.score(pictures, captions) for judge in (FORM, TinyWorldReward()))
    expected = sum(weight * whole.extras[name] for name, weight in FORM_WEIGHTS.items())
    assert torch.equal(form.values, expected)
    assert torch.equal(form.extras["whole"], whole.values)


def test_a_finished_run_is_read_and_a_half_done_one_is_redone(tmp_path):
    run = Run("few-step", 0, 0, 1, smallest=True)
    target = tmp_path / run.path
    target.parent.mkdir(parents=True)
    target.with_suffix(".part").write_text("half a row")
    rows = perform(run, tmp_path)
    assert [json.loads(line) for line in target.read_text().splitlines()][1:] == rows[1:]
    assert rows[0]["arm"] == "few-step"
    assert rows[-1]["units"] >= 48 * 3 + 48 * 3, "rollout and update of 48 samples"
    assert not target.with_suffix(".part").exists()
    target.write_text(target.read_text().replace('"few-step"', '"read"'))
    assert perform(run, tmp_path)[0]["arm"] == "read"


@pytest.mark.slow
def test_the_report_names_the_winner_and_what_was_not_run(tmp_path):
    folder = tmp_path / "whole" / "final"
    for path, data in ((folder, BASE), (tmp_path / "whole" / "screening", BASE)):
        path.mkdir(parents=True)
        (path / "base.json").write_text(json.dumps(data))
    (folder / "true.json").write_text(json.dumps(BASE))
    rewards = {"demo": [0.70, 0.72, 0.74, 0.76, 0.78, 0.79], "awm": [0.78, 0.80]}
    for arm, values in rewards.items():
        for seed in range(5):
            first = {"arm": arm, "seed": seed, "candidate": 0, "units_target": 1}
            rows = [first, *curve(*(value + 0.001 * seed for value in values))[1:]]
            text = "\n".join(map(json.dumps, rows))
            (folder / f"{arm}-seed{seed}.jsonl").write_text(text)
    write_report(tmp_path)
    report = (tmp_path / "REPORT.md").read_text()
    assert "The winner is `awm`**: 24.0k units to 0.769" in report
    assert "**1 / 2.5** of the 60.0k of the demo's recipe (5 seeds)" in report
    assert "demo, end (72.0k)" in report
    assert "`elbo` (0 of 5 seeds)" in report
    assert "`awm` (" not in report
    assert {"reward.png", "clean.png"} <= {path.name for path in tmp_path.iterdir()}
