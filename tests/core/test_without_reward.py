"""Runs that nothing measures: only a training on picks can do without a reward, and it says so."""

from __future__ import annotations

import json

import pytest
import torch
from fakes import ToyPolicy
from offline_picks import config_of, world

from chunk_grpo_core.algorithms.preference import JudgedLatents, Preference
from chunk_grpo_core.configfile.reading import read_config
from chunk_grpo_core.method.preference import PreferenceConfig
from chunk_grpo_core.method.reward import NoReward
from chunk_grpo_core.rewards.taste.votes import load_votes
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.runs.load import load_rewards
from chunk_grpo_core.runs.view import run_view

HELD_OUT = ("warm and bright", "cold and dark")


def run(folder, reward=None, **changes):
    config = config_of(iterations=2, **changes)
    examples, latents = world()
    algorithm = Preference(config, JudgedLatents(latents))
    return run_experiment(
        ToyPolicy(),
        reward or NoReward(),
        examples,
        HELD_OUT,
        config,
        RunFolder(folder),
        algorithm=algorithm if config.algorithm == "preference" else None,
        evaluation_seeds=3,
    )


def test_it_trains_draws_before_and_after_and_claims_nothing(tmp_path):
    picks = PreferenceConfig(beta=200.0, picks=str(tmp_path / "secret" / "mine"))
    outcome = run(tmp_path / "a", preference=picks)
    assert outcome.reward == "none" and not outcome.is_measured and outcome.held_out == []
    assert outcome.before.rewards.shape == (2, 1) and outcome.before.rewards.isnan().all()
    assert torch.isnan(torch.tensor([outcome.gain.mean, outcome.gain.low])).all()
    assert not torch.equal(outcome.before.images, outcome.after.images)
    assert outcome.warnings == [] and outcome.warnings_json()["missing_scores"] == {
        "before": 0,
        "after": 0,
    }
    header = outcome.lora_metadata()
    assert json.loads(header["held_out_reward"]) is None
    assert json.loads(header["chunk_grpo_recipe"])["preference.picks"] == "mine"
    assert outcome.before_after_grid().shape[-1] == 3
    view = run_view(tmp_path / "a")
    assert view["reward"] == "none" and view["is_measured"] and view["held_out"] == []


def test_whatever_asks_for_scores_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="evaluate_every is 1, but without a reward nothing is"):
        run(tmp_path / "b", evaluate_every=1)
    assert not (tmp_path / "b").exists()


def test_votes_that_nobody_would_be_asked_for_are_refused(tmp_path):
    with pytest.raises(ValueError, match="contains votes, but the algorithm preference makes no"):
        run(tmp_path / "b", load_votes(tmp_path / "taste", "best"))
    assert not (tmp_path / "b").exists()


FILE = {
    "algorithm": "preference",
    "model": {"type": "flux", "path": "black-forest-labs/FLUX.1-dev"},
    "grid": {"steps": 5, "shift": 3.0},
    "preference": {"picks": "mine"},
}


def test_a_configuration_of_any_model_may_leave_the_reward_out_if_it_trains_on_picks(tmp_path):
    config = read_config(FILE, tmp_path, "x")
    assert config.rewards == () and isinstance(load_rewards(config), NoReward)
    assert config.tables()["reward"] == []
    assert read_config({**FILE, "reward": []}, tmp_path, "x").rewards == ()
    tiny = read_config({**FILE, "model": {"type": "tiny"}}, tmp_path, "x")
    assert [reward.name for reward in tiny.rewards] == ["tiny_world"]
    others = {"algorithm": "forward", "prompts": {"text": ["a"]}, "preference": {}}
    with pytest.raises(ValueError, match=r"\[reward\] is missing; give it a name"):
        read_config({**FILE, **others, "share_initial_noise": False}, tmp_path, "x")
