"""A plan remembers the curve it was read off, and a training says when the two do not belong."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
from fakes import PROMPTS, Brightness, GaussianWorld, ToyPolicy, curve_of, toy_config

from chunk_grpo_core.method.chunks import ChunkPlan, chunk_weights
from chunk_grpo_core.method.dynamics import dynamics_curve
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.plan_mismatches import plan_mismatches
from chunk_grpo_core.method.plan_text import read_weights
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.train.checkpoint import TrainingState
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.may_change import changes_since
from chunk_grpo_core.train.trainer import Trainer

CONFIG = toy_config()
CHANGES = (0.7, 0.5, 0.4, 0.3, 0.2)


def weighed(**settings):
    """The plan of ``CONFIG`` with weights off a curve, measured as it trains or otherwise."""
    curve = curve_of(*CHANGES, **{"sigmas": CONFIG.grid.sigmas, **settings})
    return chunk_weights(CONFIG.plan, curve)


def mismatches(plan):
    return plan_mismatches(plan, CONFIG.grid, CONFIG.sde, "toy")


def test_a_plan_that_was_chosen_has_no_source():
    assert CONFIG.plan.source is None
    assert read_weights("1, 1, 0", CONFIG.plan).source is None
    assert mismatches(CONFIG.plan) == []


@pytest.mark.parametrize("text", ["curve", "softmax 0.3"])
def test_weights_read_off_a_curve_remember_it(text):
    curve = curve_of(*CHANGES, distance="cosine")
    plan = read_weights(text, CONFIG.plan, curve)
    assert plan.source == curve.source and curve.source.distance == "cosine"


def test_a_source_survives_json_as_part_of_the_settings():
    config = toy_config(plan=weighed())
    found = TrainConfig.of(json.loads(json.dumps(config.flat())))
    assert found == config and found.plan.source == config.plan.source is not None
    data = json.loads(json.dumps(config.flat()))
    data["plan"]["source"]["rul"] = "flow"
    with pytest.raises(ValueError, match=r"plan.source.rul; did you mean plan.source.rule\?"):
        TrainConfig.of(data)


def test_plans_written_before_there_were_sources_are_read():
    data = weighed().to_json()
    del data["source"]
    found = ChunkPlan.from_json(data)
    assert found == weighed() and found.source is None


def test_the_source_is_no_part_of_the_training():
    assert weighed() == weighed(eta=0.1)
    assert hash(weighed()) == hash(weighed(eta=0.1))
    before = TrainingState(3, toy_config(plan=weighed()).flat())
    now = toy_config(plan=weighed(model="renamed")).flat()
    assert changes_since(before, now) == ()
    without = {**before.trained_with, "plan": {**before.trained_with["plan"]}}
    del without["plan"]["source"]
    assert changes_since(TrainingState(3, without), now) == ()
    with pytest.raises(ValueError, match="plan = .*weights"):
        changes_since(before, toy_config(plan=replace(weighed(), weights=None)).flat())


def test_a_curve_measured_as_the_training_samples_is_no_mismatch():
    assert mismatches(weighed()) == []
    assert mismatches(weighed(model="")) == []
    float32 = tuple(torch.tensor(CONFIG.grid.sigmas).tolist())
    assert float32 != CONFIG.grid.sigmas and mismatches(weighed(sigmas=float32)) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": "ode"}, ["rule ode", "uses flow", "upside down", "sampler that trains"]),
        ({"rule": "dance", "eta": 0.3}, ["rule dance", "uses flow"]),
        ({"eta": 0.3}, ["eta 0.3", "uses 0.7", "eta that trains"]),
        ({"sigmas": shifted_grid(9).sigmas}, ["9 steps", "has 6", "sigmas that train"]),
        ({"sigmas": (1.0, 0.9, 0.8, 0.6, 0.5, 0.1, 0.0)}, ["0.1 where", "has 0.2857"]),
        ({"model": "comfyui/Flux"}, ["model comfyui/Flux", "toy trains", "again"]),
    ],
)
def test_each_setting_that_differs_is_one_sentence_with_both_values(settings, words):
    (sentence,) = mismatches(weighed(**settings))
    assert [word for word in words if word not in sentence] == []
    assert sentence.endswith(".") and sentence.count(". ") == 0


def test_all_settings_that_differ_are_named():
    assert len(mismatches(weighed(rule="cps", model="other", sigmas=shifted_grid(6).sigmas))) == 3


@pytest.mark.parametrize(
    ("rule", "rises"), [("ode", True), ("dance", True), ("flow", False), ("cps", False)]
)
def test_the_curve_of_a_rule_runs_as_the_message_says(rule, rises):
    world, sde = GaussianWorld(mean=0.0), SdeConfig(rule=rule)
    groups = [
        rollout(world.velocity, p, shifted_grid(17), sde, Noise(False, seed, 8), (4, 8, 8))
        for seed, p in enumerate(PROMPTS)
    ]
    weights = chunk_weights(ChunkPlan((2, 3, 4, 7)), dynamics_curve(groups)).weights
    assert weights is not None and (weights[0] < weights[-1]) == rises


@pytest.mark.parametrize(("settings", "count"), [({}, 0), ({"rule": "ode", "model": "other"}, 1)])
def test_a_training_warns_once_of_a_plan_that_does_not_fit(settings, count, caplog):
    plan = weighed(**settings)
    config = toy_config(plan=plan, iterations=2, group_size=2)
    with caplog.at_level(logging.WARNING):
        Trainer(ToyPolicy(), Brightness(), PROMPTS, config).train()
    found = [text for text in caplog.messages if "chunk plan does not fit" in text]
    assert len(found) == count
    assert all(sentence in text for text in found for sentence in mismatches(plan))
