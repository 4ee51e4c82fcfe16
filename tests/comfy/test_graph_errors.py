"""What is wrong with a graph is said with the input's name, its value and what is allowed."""

import re
import socket

import pytest
import torch
from safetensors.torch import save_file

from . import graphs
from .client import PromptRejected
from .graphs import change, node, shown_text

TRAIN = "ChunkGRPO_TrainLoRA"


def rejected(client, prompt):
    with pytest.raises(PromptRejected) as caught:
        client.submit(prompt)
    return " ".join(caught.value.messages())


def failed(client, prompt):
    run = client.run(prompt, check=False)
    assert not run.ok
    return run.error.partition("\n")[0]


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        (TRAIN, {"group_size": -1}, ["group_size", "-1", "min of 0"]),
        (TRAIN, {"learning_rate": 5.0}, ["learning_rate", "5.0", "max of 1"]),
        (
            "ChunkGRPO_LoadReward",
            {"name": "target_colour", "colour": "bluish"},
            ["colour", "'bluish'", "six hexadecimal digits"],
        ),
        ("ChunkGRPO_PlanChunks", {"chunk_sizes": "two"}, ["chunk_sizes", "'two'", "size 4"]),
        ("ChunkGRPO_GRPOSettings", {"lora_targets": "("}, ["lora_targets", "'('"]),
        (TRAIN, {"run_name": "../up"}, ["run_name", "'../up'", "letters, digits"]),
        ("ChunkGRPO_SaveLoRA", {"name": "a/../b"}, ["name", "'..'", "letters, digits"]),
    ],
)
def test_a_wrong_widget_is_refused_before_anything_runs(kind, inputs, words, comfy):
    message = rejected(comfy, change(graphs.small(graphs.twin(graphs.BY_HAND)), kind, **inputs))
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        ("ChunkGRPO_FlowSDESampler", {"rule": "ode"}, ["ode", "eta", "stochastic"]),
        (
            "ChunkGRPO_FlowSDESampler",
            {"noise_from": 0.6, "noise_to": 0.4},
            ["noise_from is 0.6", "noise_to 0.4", "0..1"],
        ),
        (
            "ChunkGRPO_FlowSDESampler",
            {"noise_to": 0.5},
            ["noise_from 0.0 and noise_to 0.5", "training need 0 and 1"],
        ),
        (
            "ChunkGRPO_PlanChunks",
            {"chunk_sizes": "2, 3", "weights": "uniform"},
            ["[2, 3]", "5 steps", "8 trainable"],
        ),
        ("ChunkGRPO_PromptSet", {"text": "a large purple cat"}, ["'purple'", "known words: "]),
        (TRAIN, {"group_size": 1}, ["group_size is 1", "2"]),
        (TRAIN, {"resume": True}, ["resume", "run_name is empty"]),
        (TRAIN, {"run_name": "new", "resume": True}, ["'new'", "turn resume off"]),
    ],
)
def test_what_only_shows_in_the_run_is_named(kind, inputs, words, comfy):
    message = failed(comfy, change(graphs.training(), kind, **inputs))
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        (
            "ChunkGRPO_GRPOObjective",
            {"advantage_combine": "advantages", "advantage_scale": "none"},
            ["advantage.combine is advantages", "advantage.scale is none"],
        ),
        (
            "ChunkGRPO_GRPOExploration",
            {"window": "sliding", "window_chunks": 2, "window_stride": 3},
            ["window.stride is 3", "1..2"],
        ),
        (
            "ChunkGRPO_GRPOExploration",
            {"noise": "window", "window": "all"},
            ["noise is 'window'", "kind is 'all'"],
        ),
        (
            "ChunkGRPO_GRPOExploration",
            {"ode_solver": "dpm2", "noise": "all"},
            ["ode_solver is 'dpm2'", "'window' or 'drawn'"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(kind, inputs, words, comfy):
    message = failed(comfy, graphs.tuned(graphs.training(), kind, comfy.object_info(), **inputs))
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        (
            "ChunkGRPO_GRPOExploration",
            {"window": "fixed", "window_chunks": 3, "window_start": 2},
            ["a window of 3 chunks that starts at chunk 2", "plan of 4 chunks"],
        ),
        (
            "ChunkGRPO_GRPOExploration",
            {"window": "random", "window_chunks": 4},
            ["no room to move", "4 chunks"],
        ),
        (
            "ChunkGRPO_GRPOObjective",
            {"advantage_keep": 3},
            ["advantage.keep is 3", "group_size 4", "at most half"],
        ),
        (  # what the node inherits comes through a link: it is known only in the run
            "ChunkGRPO_GRPOExploration",
            {"noise": "window"},
            ["noise is 'window'", "kind is 'all'", "this node sets noise"],
        ),
        (
            "ChunkGRPO_GRPOExploration",
            {"ode_solver": "dpm2"},
            ["ode_solver is 'dpm2'", "'window' or 'drawn'", "this node sets ode_solver"],
        ),
        ("ChunkGRPO_GRPOObjective", {"clip_low": 0.0}, ["clip_low is 0", "-1 for that of"]),
    ],
)
def test_settings_that_do_not_fit_the_graph_are_named(kind, inputs, words, comfy):
    message = failed(comfy, graphs.tuned(graphs.training(), kind, comfy.object_info(), **inputs))
    assert [word for word in words if word not in message] == [], message


def test_a_reward_that_scores_nothing_ends_the_node_and_no_run_is_left(comfy, comfy_server):
    settings = "model=m, judge=yes_no, retries=0"
    with socket.socket() as nobody:  # bound, but not listening
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        reward = {"name": "vlm_judge", "url": url, "settings": settings}
        prompt = change(graphs.training(run_name="unscored"), "ChunkGRPO_LoadReward", **reward)
        prompt = change(prompt, "ChunkGRPO_GRPOSettings", reward_retries=1, reward_wait=0)
        message = failed(comfy, prompt)
    words = ["no picture of the evaluation has a score", url, "repair the reward, then run again"]
    assert [word for word in words if word not in message] == [], message
    assert not (comfy_server.output / "chunk_grpo" / "unscored").exists()
    assert "unscored" not in comfy.get("/chunk_grpo/runs")["runs"]
    assert "evaluation" in comfy.get("/chunk_grpo/runs/unscored")["live"]["message"]


def test_a_preset_that_needs_a_curve_asks_for_it(comfy):
    prompt = graphs.with_preset(graphs.training(), "gcpo-v3")
    message = failed(comfy, prompt)
    words = ["plan of gcpo-v3", "no curve is connected", "Analyze Temporal Dynamics", "17 steps"]
    assert [word for word in words if word not in message] == [], message


def test_a_combination_of_rewards_without_weight_is_refused(comfy):
    prompt = {"reward": node("ChunkGRPO_LoadReward", name="target_colour", colour="#aa0000")}
    prompt["both"] = node(
        "ChunkGRPO_CombineRewards",
        **{"reward_1": ["reward", 0], "reward_2": ["reward", 0], "weight_1": 0.0, "weight_2": 0.0},
    )
    prompt["picture"] = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    prompt["scores"] = node(
        "ChunkGRPO_ScoreImages", reward=["both", 0], images=["picture", 0], prompt="red"
    )
    message = failed(comfy, prompt)
    assert "weights of target_colour, target_colour_2 are all 0" in message
    prompt["both"]["inputs"]["weight_1"] = 2000.0
    assert "max of 1000" in rejected(comfy, prompt)


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        ("ChunkGRPO_FlowSDESampler", {"rule": "euler"}, ["rule", "euler", "flow", "ode"]),
        ("ChunkGRPO_LoadReward", {"name": "beauty"}, ["reward", "'beauty'", "tiny_world"]),
    ],
)
def test_an_unknown_choice_is_named(kind, inputs, words, comfy):
    prompt = change(graphs.training(), kind, **inputs)
    try:
        message = failed(comfy, prompt)  # ComfyUI 0.3.75 leaves the check to the node
    except PromptRejected as refusal:
        message = " ".join(refusal.messages())
        if "value_not_in_list" in message:  # newer ComfyUI's own words; long lists it only counts
            words = [*inputs, *map(repr, inputs.values())]
    assert [word for word in words if word not in message] == [], message


def test_every_checked_text_may_come_through_a_link(comfy):
    prompt = {"reward": node("ChunkGRPO_LoadReward", name="target_colour", colour=["colour", 0])}
    prompt["plan"] = node(
        "ChunkGRPO_PlanChunks", chunk_sizes=["sizes", 0], weights="uniform", dark=True
    )
    prompt["scores"] = node(
        "ChunkGRPO_ScoreImages", reward=["reward", 0], images=["plan", 1], prompt="a plot"
    )
    prompt["colour"] = node("PrimitiveString", value="#aa0000")
    prompt["sizes"] = node("PrimitiveString", value="1, 2, 2, 3")
    assert "a plot" in shown_text(comfy.run(prompt), "scores")
    train = change(graphs.training(), TRAIN, run_name=["words", 0])
    train = change(train, "ChunkGRPO_GRPOSettings", lora_targets=["words", 0])
    train["words"] = node("PrimitiveString", value="attention")
    train["save"] = node(
        "ChunkGRPO_SaveLoRA", lora=["12", 0], name=["words", 0], for_diffusers=False
    )
    assert shown_text(comfy.run(train), "save").endswith("attention.safetensors")


def test_a_sampler_without_known_probabilities_is_refused(comfy):
    prompt = change(graphs.training(), TRAIN, sampler=["euler", 0])
    prompt["euler"] = node("KSamplerSelect", sampler_name="euler")
    message = failed(comfy, prompt)
    assert "the sampler is sample_euler; connect a Flow SDE Sampler" in message


def test_sigmas_that_stop_early_are_refused(comfy):
    prompt = change(graphs.training(), TRAIN, sigmas=["split", 0])
    prompt["split"] = node("SplitSigmas", sigmas=["4", 0], step=5)
    assert re.search(r"the last sigma is 0\.\d+; it must be 0", failed(comfy, prompt))


def test_a_latent_of_another_model_is_refused(comfy, comfy_server):
    tensors = {"latent_tensor": torch.ones(1, 4, 8, 8), "latent_format_version_0": torch.zeros(0)}
    save_file(tensors, comfy_server.input / "four.latent")
    prompt = change(graphs.training(), TRAIN, latent=["four", 0])
    prompt["four"] = node("LoadLatent", latent="four.latent")
    message = failed(comfy, prompt)
    assert "LATENT has 4 channels" in message and "needs 16" in message


def test_a_plan_of_a_curve_with_other_steps_is_refused_before_it_is_measured(comfy):
    prompt = graphs.small(graphs.twin(graphs.BY_HAND), run_name="other_steps")
    prompt["other"] = node("ChunkGRPO_ShiftedSigmas", steps=11, shift=3.0)
    prompt = change(prompt, TRAIN, sigmas=["other", 0])
    prompt = graphs.upstream(prompt, graphs.find(prompt, TRAIN))
    run = comfy.record(prompt, check=False)
    steps = prompt["4"]["inputs"]["steps"]
    assert f"a curve of {steps} steps, but its sigmas have 11" in run.error
    prepared = {event["node"] for event in run.events_named("executing")}
    sampled = {"ChunkGRPO_AnalyzeTemporalDynamics", "ChunkGRPO_PlanChunks"}
    assert not prepared & {graphs.find(prompt, kind) for kind in sampled}
