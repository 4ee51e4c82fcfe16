"""One mistake is told once, at its input or its node, and before anything heavy is loaded."""

from __future__ import annotations

import math
import uuid
from pathlib import Path

import pytest

from . import graphs
from .client import PromptRejected
from .graphs import change, find, input_options, node

TRAIN, REWARD, PROMPTS = "ChunkGRPO_TrainLoRA", "ChunkGRPO_LoadReward", "ChunkGRPO_PromptSet"
EVALUATE, ROLL_OUT, APPLY = (
    "ChunkGRPO_EvaluateLoRA", "ChunkGRPO_RollOutTrajectories", "ChunkGRPO_ApplyLoRA",
)  # fmt: skip
HEAVY = ("ChunkGRPO_LoadTinyFlux", PROMPTS, "CLIPTextEncode", "VAEDecode")
"""What stands for loading a model, and for what needs one."""
SAVE = "ChunkGRPO_SaveLoRA"
SETTINGS, SAMPLER = "ChunkGRPO_GRPOSettings", "ChunkGRPO_FlowSDESampler"
EXPLORATION, OBJECTIVE = "ChunkGRPO_GRPOExploration", "ChunkGRPO_GRPOObjective"

TYPED = {
    "text": "a red circle\na green square\na blue cross\na white triangle",
    "held_out_text": "",
}
"""Prompts that do not come from the model's node."""


def told(client, prompt):
    """Every message about a prompt: (kind of node, input or "", text); and what had run by then."""
    for entry in prompt.values():
        if entry["class_type"] in HEAVY:  # an earlier test may have left it in the cache
            entry["inputs"]["not cached"] = uuid.uuid4().hex
    try:
        run = client.wait(client.submit(prompt), 60)
    except PromptRejected as refusal:
        errors = [
            (entry["class_type"], error["extra_info"].get("input_name", ""), error["details"])
            for entry in refusal.node_errors.values()
            for error in entry["errors"]
        ]
        return errors, []
    messages = [data for name, data in run.history["status"]["messages"] if name.endswith("error")]
    errors = [(data["node_type"], "", data["exception_message"].strip()) for data in messages]
    return errors, [prompt[key]["class_type"] for data in messages for key in data["executed"]]


def by_hand(kind, **inputs):
    return change(graphs.training(), kind, **inputs)


def tuned(comfy, kind, **inputs):
    return graphs.tuned(graphs.training(), kind, comfy.object_info(), **inputs)


def recipe(kind, **inputs):
    prompt = graphs.small(graphs.twin(graphs.QUICK_START))
    return change(graphs.upstream(prompt, find(prompt, TRAIN)), kind, **inputs)


def without_reward():
    prompt = graphs.training()
    del prompt[find(prompt, TRAIN)]["inputs"]["reward"]
    return prompt


def euler(comfy):
    prompt = by_hand(TRAIN, sampler=["euler", 0])
    return {**prompt, "euler": node("KSamplerSelect", sampler_name="euler")}


def through_a_link(comfy, kind, name, value=math.nan):
    prompt = by_hand(kind, **{name: ["number", 0]})
    return {**prompt, "number": node("PrimitiveFloat", value=value)}


def evaluation(**inputs):
    """A training and its measurement."""
    prompt = graphs.training(run_name="measured")
    train = find(prompt, TRAIN)
    shared = {k: prompt[train]["inputs"][k] for k in ("model", "vae", "prompts", "reward")}
    shared |= {k: prompt[train]["inputs"][k] for k in ("sigmas", "latent")}
    values = {"pictures_per_prompt": 1, "noise_seed": 0, "batch_size": 0, "dark": False}
    prompt["measure"] = node(EVALUATE, **{**shared, **values, "lora": [train, 0], **inputs})
    return prompt


def roll_out(**inputs):
    prompt = graphs.small(graphs.twin(graphs.BY_HAND))
    prompt = change(graphs.upstream(prompt, find(prompt, ROLL_OUT)), ROLL_OUT, **inputs)
    return {**prompt, "end": node("PreviewAny", source=[find(prompt, ROLL_OUT), 2])}


def measured_through_a_link(name, value):
    prompt = evaluation(**{name: ["number", 0]})
    return {**prompt, "number": node("PrimitiveInt", value=value)}


def rolled_out_through_a_link(name, value):
    return {**roll_out(**{name: ["number", 0]}), "number": node("PrimitiveInt", value=value)}


def saved_as(text):
    prompt = graphs.training(run_name="")
    prompt["save"] = node(
        SAVE, lora=[find(prompt, TRAIN), 0], name=["text", 0], for_diffusers=False
    )
    return {**prompt, "text": node("PrimitiveString", value=text)}


def two_references():
    prompt = by_hand(PROMPTS, **TYPED, reference=["pictures", 0])
    return {**prompt, "pictures": node("EmptySD3LatentImage", width=64, height=64, batch_size=2)}


def apply(**inputs):
    values = {"lora_name": "none", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    prompt = {"1": node("ChunkGRPO_LoadTinyFlux")}
    prompt["apply"] = node(APPLY, model=["1", 0], **{**values, **inputs})
    return {**prompt, "end": node("PreviewAny", source=["apply", 0])}


AT_VALIDATION = [
    (TRAIN, "learning_rate", math.nan),
    (TRAIN, "learning_rate", math.inf),
    (TRAIN, "alpha", math.nan),
    (TRAIN, "cfg", math.nan),
    (TRAIN, "group_size", -1),
    (TRAIN, "run_name", "../up"),
    (PROMPTS, "guidance", math.nan),
    (PROMPTS, "held_out_share", math.nan),
    (PROMPTS, "file", "../up.txt"),
    (SAMPLER, "eta", math.nan),
    (SAMPLER, "noise_to", math.nan),
    ("ChunkGRPO_ShiftedSigmas", "shift", math.nan),
    (SETTINGS, "clip", math.nan),
    (SETTINGS, "lora_targets", "("),
    ("ChunkGRPO_PlanChunks", "chunk_sizes", "two"),
    (REWARD, "colour", "blue"),
]
"""Node, input, wrong value; refused before anything is put into the queue."""


@pytest.mark.parametrize(("kind", "name", "value"), AT_VALIDATION)
def test_a_wrong_value_is_marked_at_its_input_alone(kind, name, value, comfy):
    errors, _ = told(comfy, by_hand(kind, **{name: value}))
    assert [error[:2] for error in errors] == [(kind, name)]


FIRST_THING = {
    "one picture in a group": (
        lambda comfy: by_hand(TRAIN, group_size=1), TRAIN, ["group_size is 1"],
    ),
    "one picture in a group of a recipe": (
        lambda comfy: recipe(TRAIN, group_size=1), TRAIN, ["group_size is 1"],
    ),
    "a plan of other steps": (
        lambda comfy: by_hand("ChunkGRPO_ShiftedSigmas", steps=12), TRAIN, ["8", "11 trainable"],
    ),
    "a plan that a window does not fit": (
        lambda comfy: tuned(
            comfy, EXPLORATION, window="fixed", window_chunks=3, window_start=2
        ),
        TRAIN, ["plan of 4 chunks"],
    ),
    "Euler with Chunk-GRPO": (euler, TRAIN, ["sample_euler", "Flow SDE Sampler"]),
    "cfg without negative": (
        lambda comfy: by_hand(TRAIN, cfg=4.0), TRAIN, ["cfg is 4.0", "negative"],
    ),
    "cfg that is no number, through a link": (
        lambda comfy: through_a_link(comfy, TRAIN, "cfg"), TRAIN, ["cfg is nan"],
    ),
    "learning rate that is no number, through a link": (
        lambda comfy: through_a_link(comfy, TRAIN, "learning_rate"),
        TRAIN, ["learning_rate", "nan"],
    ),
    "no picture of a held-out prompt, through a link": (
        lambda comfy: {
            **by_hand(TRAIN, pictures_per_held_out=["number", 0]),
            "number": node("PrimitiveInt", value=0),
        },
        TRAIN, ["pictures_per_held_out is 0", "from 1 to"],
    ),
    "no picture to measure on, through a link": (
        lambda comfy: measured_through_a_link("pictures_per_prompt", 0),
        EVALUATE, ["pictures_per_prompt is 0", "from 1 to"],
    ),
    "fewer than no prompts to roll out, through a link": (
        lambda comfy: rolled_out_through_a_link("prompt_count", -3),
        ROLL_OUT, ["prompt_count is -3", "from 1 to"],
    ),
    "no pictures to roll out, through a link": (
        lambda comfy: rolled_out_through_a_link("group_size", 0),
        ROLL_OUT, ["group_size is 0", "from 1 to"],
    ),
    "guidance that is no number, through a link": (
        lambda comfy: change(
            through_a_link(comfy, PROMPTS, "guidance"), PROMPTS, **TYPED
        ),
        PROMPTS, ["guidance is nan"],
    ),
    "a name that can be no file, through a link": (
        lambda comfy: saved_as("../up"), SAVE, ["'..' cannot be a file name"],
    ),
    "two pictures as one reference": (
        lambda comfy: two_references(), PROMPTS, ["reference holds 2 latents"],
    ),
    "resume without a name": (
        lambda comfy: by_hand(TRAIN, resume=True), TRAIN, ["run_name is empty"],
    ),
    "resume of no run": (
        lambda comfy: by_hand(TRAIN, run_name="nobodys", resume=True), TRAIN, ["'nobodys'"],
    ),
    "no reward": (
        lambda comfy: without_reward(), TRAIN, ["reward is missing"],
    ),
    "a reward whose files are missing": (
        lambda comfy: by_hand(REWARD, name="pickscore"), REWARD,
        ["https://huggingface.co/", "models/reward_models/pickscore"],
    ),
    "a server without an address": (
        lambda comfy: by_hand(REWARD, name="remote_http"), REWARD, ["needs the url"],
    ),
    "an unknown setting of the reward": (
        lambda comfy: by_hand(REWARD, settings="softness=2"), REWARD, ["softness"],
    ),
    "sampler without noise": (
        lambda comfy: by_hand(SAMPLER, rule="ode", eta=0.0), TRAIN, ["nothing to explore"],
    ),
    "noise that ends before it begins": (
        lambda comfy: by_hand(SAMPLER, noise_from=0.6, noise_to=0.4),
        SAMPLER, ["noise_from is 0.6"],
    ),
    "a window that jumps over chunks": (
        lambda comfy: tuned(
            comfy, EXPLORATION, window="sliding", window_chunks=2, window_stride=3
        ),
        EXPLORATION, ["window.stride is 3"],
    ),
    "advantages of no scale": (
        lambda comfy: tuned(
            comfy, OBJECTIVE, advantage_combine="advantages", advantage_scale="none"
        ),
        OBJECTIVE, ["advantage.scale is none"],
    ),
    "measuring with cfg without negative": (
        lambda comfy: evaluation(cfg=3.0), EVALUATE, ["cfg is 3.0"],
    ),
    "measuring with a sampler that stops early": (
        lambda comfy: {
            **evaluation(sampler=["fast", 0]),
            "fast": node("KSamplerSelect", sampler_name="dpm_fast"),
        },
        EVALUATE, ["dpm_fast"],
    ),
    "rollouts with cfg without negative": (
        lambda comfy: roll_out(cfg=3.0), ROLL_OUT, ["cfg is 3.0"],
    ),
    "no LoRA to apply": (lambda comfy: apply(), APPLY, ["lora is not connected"]),
    "steps of a LoRA that end before they begin": (
        lambda comfy: apply(start_percent=0.6, end_percent=0.4), APPLY, ["start_percent is 0.6"],
    ),
}  # fmt: skip
"""Mistake -> graph, node that tells it, words."""


@pytest.mark.parametrize("mistake", FIRST_THING)
def test_a_mistake_is_told_once_before_anything_is_loaded(mistake, comfy, comfy_server):
    graph, kind, words = FIRST_THING[mistake]
    runs = Path(comfy_server.base, "output", "chunk_grpo")
    before = sorted(runs.glob("*/run.toml"))
    errors, has_run = told(comfy, graph(comfy))
    assert [error[0] for error in errors] == [kind], errors
    assert [word for word in words if word not in errors[0][2]] == [], errors
    assert not set(has_run) & set(HEAVY)
    assert sorted(runs.glob("*/run.toml")) == before


def test_an_input_that_is_missing_is_told_at_that_input(comfy):
    """As ComfyUI tells it; a check of ours that needs the value must not come in its way."""
    told_otherwise = []
    for kind, definition in comfy.object_info().items():
        if not kind.startswith("ChunkGRPO_") or not definition["input"].get("required"):
            continue
        prompt = {"asked": node(kind)}
        if not definition["output_node"]:
            prompt["end"] = node("PreviewAny", source=["asked", 0])
        errors, _ = told(comfy, prompt)
        if {error[1] for error in errors} != set(definition["input"]["required"]):
            told_otherwise.append((kind, errors))
    assert told_otherwise == []


def test_prompts_are_read_before_the_text_encoder_is_loaded(comfy):
    prompt = by_hand(PROMPTS, text="a {red|blue", held_out_text="")
    errors, has_run = told(comfy, prompt)
    assert [error[0] for error in errors] == [PROMPTS]
    assert "ChunkGRPO_LoadTinyFlux" not in has_run


def test_no_input_of_a_number_takes_what_is_none(comfy):
    info = comfy.object_info()
    open_ended = [
        (kind, name)
        for kind, definition in info.items()
        if kind.startswith("ChunkGRPO_")
        for name, options in input_options(definition).items()
        if "min" not in options and not options.get("forceInput")
        if any(
            name in group and group[name][0] == "FLOAT" for group in definition["input"].values()
        )
    ]
    assert open_ended == []


def test_what_only_the_prompts_show_is_told_when_they_are_encoded(comfy):
    errors, has_run = told(comfy, by_hand(PROMPTS, held_out=1))
    assert [error[0] for error in errors] == [TRAIN] and "held out: 1" in errors[0][2]
    assert {"ChunkGRPO_LoadTinyFlux", PROMPTS} <= set(has_run)
