"""Settings: JSON round trip, unknown keys, ranges."""

from __future__ import annotations

import json
import math

import pytest
from fakes import toy_config

from chunk_grpo_core.algorithms import algorithm_of
from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.method.advantage import AdvantageConfig
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.train.config import OptimizerConfig, TrainConfig

CHANGED = toy_config(
    plan=ChunkPlan((2, 3), (0.25, 0.75)),
    sde=SdeConfig(eta=0.3),
    advantage=AdvantageConfig(
        clamp=3.0, scale="global-std", centre="median", keep=4, combine="advantages"
    ),
    objective=ObjectiveConfig(clip_low=1e-4, clip_high=2e-4),
    optimizer=OptimizerConfig(epochs=2, recompute_log_p=True),
    lora=LoraConfig(rank=3, alpha=1.5, targets="attention"),
    batch_size=4,
    share_initial_noise=False,
)


@pytest.mark.parametrize("config", [toy_config(), CHANGED])
def test_settings_survive_json(config):
    assert TrainConfig.of(json.loads(json.dumps(config.flat()))) == config


def test_defaults_are_those_of_the_paper():
    config = TrainConfig(grid=shifted_grid(17), plan=ChunkPlan((2, 3, 4, 7)))
    assert (config.sde.rule, config.sde.eta, config.group_size) == ("flow", 0.7, 12)
    assert (config.objective.clip_low, config.objective.clip_high) == (5e-5, 5e-5)
    assert (config.chunk_fraction, config.share_initial_noise) == (0.5, True)
    assert (config.advantage.clamp, config.optimizer.weight_decay) == (5.0, 1e-4)
    assert (config.advantage.scale, config.advantage.centre) == ("group-std", "mean")
    assert (config.advantage.keep, config.advantage.combine) == (None, "rewards")


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        (None, "group_sizes", "unknown setting group_sizes; did you mean group_size?"),
        (
            "optimizer",
            "learning_rte",
            "optimizer.learning_rte; did you mean optimizer.learning_rate",
        ),
        ("sde", "etta", "unknown setting sde.etta; did you mean sde.eta?"),
        ("lora", "zzz", "unknown setting lora.zzz; known: rank, alpha, rs, targets"),
        ("plan", "weight", "unknown setting plan.weight; did you mean plan.weights?"),
        (None, "gird", "unknown setting gird; did you mean grid?"),
    ],
)
def test_unknown_setting_is_refused_with_the_nearest_known_one(part, key, message):
    data = toy_config().flat()
    if part == "plan":
        data["plan"][key] = 1
    else:
        data[f"{part}.{key}" if part else key] = 1
    with pytest.raises(ValueError, match=message):
        TrainConfig.of(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size is 1; it must be a whole number from 2 to 1024"),
        (
            {"advantage": AdvantageConfig(keep=5)},
            "advantage.keep is 5, but a group of group_size 8 .* at most half the group",
        ),
        ({"iterations": 0}, "iterations is 0; it must be a whole number from 1 to 1000000"),
        (
            {"prompts_per_iteration": 0},
            "prompts_per_iteration is 0; it must be a whole number from 1 to 1024",
        ),
        (
            {"checkpoint_every": 0},
            "checkpoint_every is 0; it must be a whole number from 1 to 1000000",
        ),
        ({"chunk_fraction": 0.0}, "chunk_fraction is 0.0; it must be a number from 0.01 to 1"),
        ({"chunk_fraction": 1.5}, r"chunk_fraction is 1.5"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number from 1 to 1024, or none"),
        (
            {"prompts_per_iteration": 1},
            "optimizer.updates_per_rollout is 2, but prompts_per_iteration is 1",
        ),
    ],
)
def test_settings_out_of_range_are_refused_with_name_value_and_range(changes, message):
    with pytest.raises(ValueError, match=message):
        toy_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": ChunkPlan((2, 2))}, r"\[2, 2\] cover 4 steps, but there are 5"),
        ({"sde": SdeConfig(eta=0.0)}, "sde is flow with eta 0.0: training needs"),
        ({"sde": SdeConfig(rule="ode")}, "sde is ode .* needs a stochastic rule"),
    ],
)
def test_settings_that_do_not_suit_chunk_grpo_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        algorithm_of(toy_config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning_rate": 0.0},
            "optimizer.learning_rate is 0.0; it must be a number from 1e-07 to 1",
        ),
        ({"learning_rate": math.nan}, "optimizer.learning_rate is nan"),
        ({"eps": -1.0}, "optimizer.eps is -1.0; it must be a number from 1e-20 to 1"),
        ({"max_grad_norm": 0.0}, "optimizer.max_grad_norm is 0.0"),
        ({"epochs": 0}, "optimizer.epochs is 0; it must be a whole number from 1 to 64"),
        ({"updates_per_rollout": 0}, "optimizer.updates_per_rollout is 0"),
        ({"beta1": 1.0}, "optimizer.beta1 is 1.0; it must be a number from 0 to 0.999999"),
        ({"beta2": -0.1}, "optimizer.beta2 is -0.1"),
        (
            {"weight_decay": -1.0},
            "optimizer.weight_decay is -1.0; it must be a number from 0 to 10",
        ),
    ],
)
def test_bad_optimizer_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)
