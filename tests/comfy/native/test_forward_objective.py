"""Forward Objective: what it sets, what it leaves out, and what Train LoRA makes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from chunk_grpo_core.presets import PRESETS

from .test_settings import coming_in, first_values

VALUES = {
    "objective": "nft",
    "times": 3,
    "kl_ref": 0.7,
    "norm_guard": 0.2,
    "time_distribution": "uniform",
    "weight": "x0",
    "share_times": "on",
    "rank_steps": 2,
    "beta": 2.0,
    "clip": 2e-3,
    "old": "average",
    "old_decay": 0.8,
}
ALWAYS = {"algorithm": "forward", "share_initial_noise": False}


def node_of(lab):
    return lab.module("nodes.forward_objective").ForwardObjective


def sampler_named(name):
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def asked_of(lab, settings, sampler, **inputs):
    """What Train LoRA asks for; nothing is trained."""
    training = lab.module("nodes.training")
    rest = dict.fromkeys(("model", "vae", "prompts", "reward", "latent"))
    rest |= {"pictures_per_held_out": 1, "run_name": "", "resume": False}
    rest |= {"iterations": 1, "prompts_per_iteration": 8, "group_size": 8, "learning_rate": 1e-3}
    rest |= {"rank": 4, "alpha": 4.0, "seed": 0, "sigmas": torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])}

    class Stop(Exception):
        pass

    def stop(*, config, sampler, **_):
        raise Stop(config, sampler)

    train_lora, training.train_lora = training.train_lora, stop
    try:
        training.TrainLoRA.execute(**{**rest, **inputs}, sampler=sampler, settings=settings)
    except Stop as caught:
        return SimpleNamespace(config=caught.args[0], sampler=caught.args[1])
    finally:
        training.train_lora = train_lora
    raise AssertionError("nothing was trained")


def test_its_first_values_choose_the_algorithm_and_nothing_else(lab):
    node = node_of(lab)
    for inputs in ({}, first_values(node)):
        assert node.execute(**inputs).args[0] == ALWAYS
    config = asked_of(lab, ALWAYS, sampler_named("euler")).config
    assert config.forward == type(config.forward)()


def test_every_input_reaches_the_training(lab):
    node = node_of(lab)
    assert VALUES.keys() == {setting.name for setting in node.SETTINGS}
    config = asked_of(lab, node.execute(**VALUES).args[0], sampler_named("euler")).config
    wanted = {**VALUES, "share_times": True}
    assert {name: getattr(config.forward, name) for name in wanted} == wanted
    assert config.algorithm == "forward" and config.share_initial_noise is False


@pytest.mark.parametrize("behind", ["nothing", "every input", *PRESETS])
def test_behind_any_settings_it_trains_with_any_sampler_and_names_what_it_leaves_out(lab, behind):
    node, forward = node_of(lab), lab.module("chunk_grpo_core.algorithms.forward").Forward
    coming = coming_in(lab, behind)
    patch, text = node.execute(settings=coming).args
    asked = asked_of(lab, patch, sampler_named("er_sde"))
    forward(asked.config, SimpleNamespace(name="er_sde", draws_noise=True))  # refuses nothing
    assert asked.config.plan is None and asked.sampler is not None
    for key in coming or {}:
        is_out = key.startswith(node.LEFT_OUT)
        assert (key in patch) != is_out
        assert (f"{key} = not used   [left out by this node]" in text) == is_out
    kept = {key: value for key, value in patch.items() if key not in ALWAYS}
    assert kept == {key: (coming or {})[key] for key in kept}


def test_the_flow_sde_sampler_is_a_noisy_rollout_of_the_library(lab):
    sde = lab.module("chunk_grpo_core.method.rules").SdeConfig(rule="cps", eta=0.4)
    sampler = lab.module("nodes.bridge.sampler").flow_sde_sampler(sde)
    asked = asked_of(lab, ALWAYS, sampler)
    assert (asked.config.sde, asked.sampler) == (sde, None)


def test_a_plan_is_refused_and_chunks_need_one(lab):
    plan = lab.module("chunk_grpo_core").read_plan("step", 3)
    with pytest.raises(ValueError, match="plan is connected, but the algorithm forward"):
        asked_of(lab, ALWAYS, sampler_named("euler"), plan=plan)
    sde = lab.module("chunk_grpo_core.method.rules").SdeConfig()
    sampler = lab.module("nodes.bridge.sampler").flow_sde_sampler(sde)
    with pytest.raises(ValueError, match="plan is not connected; connect Plan Chunks, choose"):
        asked_of(lab, None, sampler)
    assert asked_of(lab, {"plan": plan}, sampler).config.plan == plan
