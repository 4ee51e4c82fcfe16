"""Units of a picture, as a preset states them, are those that a training calls the model for."""

from __future__ import annotations

from pathlib import Path

import pytest
from environment import package
from fakes import PROMPTS, Brightness, MixingPolicy, toy_config

from benchmarks.race.units import CountedPolicy
from benchmarks.recipe_cost import table
from chunk_grpo_core.method.advantage import AdvantageConfig
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.matching import ForwardConfig
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.windows import WindowConfig
from chunk_grpo_core.presets import PRESETS, preset_config
from chunk_grpo_core.presets.cost import preset_units, units_of
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.train.config import OptimizerConfig
from chunk_grpo_core.train.trainer import Trainer

_NORM = 8
"""Units of an iteration for the norm of the velocity."""
FORWARD = {
    "algorithm": "forward",
    "plan": None,
    "objective": ObjectiveConfig(),
    "chunk_fraction": 0.5,
    "sde": SdeConfig(rule="ode"),
    "share_initial_noise": False,
}
EPOCHS = OptimizerConfig(epochs=2)
CASES = {
    "all noisy": {},
    "own start": {"share_initial_noise": False},
    "leash": {"objective": ObjectiveConfig(kl_ref=0.1)},
    "two epochs": {"optimizer": EPOCHS, "objective": ObjectiveConfig(clip_low=0.9, clip_high=9.0)},
    "first chunk": {
        "window": WindowConfig(kind="fixed", chunks=1),
        "noise": "window",
        "chunk_fraction": 1.0,
    },
    "late window": {
        "window": WindowConfig(kind="fixed", chunks=1, start=2),
        "noise": "window",
        "chunk_fraction": 1.0,
    },
    "best and worst": {"advantage": AdvantageConfig(keep=2)},
    "old again": {"optimizer": OptimizerConfig(recompute_log_p=True)},
    "awm": FORWARD,
    "nft": {**FORWARD, "forward": ForwardConfig(objective="nft", times=3)},
    "elbo": {**FORWARD, "forward": ForwardConfig(objective="elbo", clip=9.0, kl_ref=0.0)},
    "elbo, two epochs": {
        **FORWARD,
        "forward": ForwardConfig(objective="elbo", clip=9.0),
        "optimizer": EPOCHS,
    },
    "an average samples": {**FORWARD, "forward": ForwardConfig(objective="nft", old="average")},
    "awm, best and worst": {**FORWARD, "advantage": AdvantageConfig(keep=2)},
    "awm, ranked": {
        **FORWARD,
        "advantage": AdvantageConfig(keep=2),
        "forward": ForwardConfig(rank_steps=3),
    },
    "awm, noisy": {**FORWARD, "sde": SdeConfig(), "share_initial_noise": True},
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_costs_the_units_that_are_stated(case):
    groups, iterations = 4, 6
    settings = {
        "plan": ChunkPlan((1, 2, 2)),
        "prompts_per_iteration": groups,
        "group_size": 16,
        "iterations": iterations,
        "self_test": False,
        "optimizer": OptimizerConfig(learning_rate=1e-6),
        "objective": ObjectiveConfig(),
    }
    config = toy_config(**(settings | CASES[case]))
    policy = CountedPolicy(MixingPolicy())
    Trainer(policy, Brightness(), PROMPTS, config).train()
    found = (policy.units / iterations - _NORM) / (groups * config.group_size)
    stated = units_of(config, remembers_old=True).total
    shared = {"late window": 4}.get(case, 1) if config.share_initial_noise else 0
    rows = 3 * shared / config.group_size  # the CPU computes 4 rows of a step that all share
    assert found == pytest.approx(stated + rows, rel=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_cost(name):
    units = preset_units(PRESETS[name])
    if name == "gcpo-v3":  # its plan is read off a curve
        assert units is None
        return
    assert units == units_of(preset_config(name))
    assert units.rollout > 1 and units.trained > 0 and units.compared >= 0
    assert units.total == units.rollout + units.compared + 3 * units.trained


@pytest.mark.parametrize("case", ["forward", "chunks"])
def test_units_of_a_reward_that_asks_the_model_are_counted(case):
    class Encoding(MixingPolicy):
        def encode(self, images):
            return images.permute(0, 3, 1, 2)[:, [0, 1, 2, 0]]

    forward = {
        "algorithm": "forward",
        "plan": None,
        "chunk_fraction": 0.5,
        "objective": ObjectiveConfig(),
    }
    config = toy_config(
        **(forward if case == "forward" else {}), group_size=16, iterations=2, self_test=False
    )
    totals = {}
    for name in ("brightness", "follows_prompt"):
        policy = CountedPolicy(Encoding())
        Trainer(policy, load_reward(name), PROMPTS, config).train()
        totals[name] = policy.units
    found = (totals["follows_prompt"] - totals["brightness"]) / (2 * 2 * 16)
    both = [units_of(config, reward=load_reward(name)) for name in totals]
    assert found == both[1].total - both[0].total == both[1].judged == 8


def test_a_model_with_one_time_for_all_samples_needs_a_second_pass_for_chunks():
    config = toy_config(optimizer=OptimizerConfig(epochs=2))
    one, two = (units_of(config, mixes_times=mixes).compared for mixes in (True, False))
    assert two > one


@pytest.mark.slow
def test_the_page_shows_the_computed_table():
    package("diffusers")
    page = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
    assert table(512) in page.read_text(encoding="utf-8")
