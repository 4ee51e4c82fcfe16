"""API-format prompts for the tests: the example workflows, made small, and parts of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from tools.comfyui.graphs import (
    PRESET_TO_TRAIN,
    Prompt,
    change,
    node,
    twin,
    upstream,
    workflow,
)

from .client import Run

TINY = (
    "01_quick_start_tiny_flux", "02_temporal_dynamics", "03_score_and_pick", "04_use_the_lora",
    "05_grpo_preset", "06_few_steps", "07_teach_your_taste", "08_every_step_by_hand",
)  # fmt: skip
"""Examples that need no download and run on a CPU."""
QUICK_START, DYNAMICS, PICK, USE, PRESET, FEW_STEPS, TASTE, BY_HAND = TINY
REAL = (
    "10_flux1_dev_bf16", "11_flux1_dev_fp8", "12_flux2_dev", "13_sd35", "14_qwen_image",
    "15_z_image", "16_z_image_turbo", "17_flux2_klein", "18_krea2_turbo",
    "19_z_image_turbo_your_taste",
)  # fmt: skip
"""Examples for models that the user brings."""
NAMES = (*TINY, *REAL)

MODEL, CLIP, VAE = (["1", slot] for slot in range(3))  # of the examples of the tiny FLUX


def model_files(name: str) -> list[tuple[dict, dict]]:
    """Return (node, file) for every model file of an example; a file has name, directory, url."""
    nodes = workflow(name)["nodes"]
    return [(entry, file) for entry in nodes for file in entry["properties"].get("models", ())]


def small(prompt: Prompt, **training: object) -> Prompt:
    """Return a copy of an example that runs in seconds."""
    prompt = change(prompt, "ChunkGRPO_PromptSet", held_out=2)
    prompt = change(prompt, "ChunkGRPO_RollOutTrajectories", prompt_count=1, group_size=2)
    for entry in prompt.values():
        if entry["class_type"] == "EmptySD3LatentImage" and entry["inputs"]["batch_size"] > 1:
            entry["inputs"]["batch_size"] = 2
    sizes = {"iterations": 1, "prompts_per_iteration": 2, "group_size": 4, "rank": 4}
    sizes |= {"pictures_per_held_out": 2, "learning_rate": 1e-2}
    return change(prompt, "ChunkGRPO_TrainLoRA", **{**sizes, **training})


def training(**inputs: object) -> Prompt:
    """Return a small graph that ends in the Train node, every step by hand."""
    prompt = small(twin(BY_HAND), **inputs)
    plan = find(prompt, "ChunkGRPO_PlanChunks")
    del prompt[plan]["inputs"]["curve"]  # no rollouts only for a plot
    return upstream(prompt, find(prompt, "ChunkGRPO_TrainLoRA"))


def watched_training(seed: int, **inputs: object) -> Prompt:
    """Return :func:`training`, measured after every other iteration, too."""
    return change(training(seed=seed, **inputs), "ChunkGRPO_GRPOSettings", evaluate_every=2)


def read_lines(path: Path) -> list[dict]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def sampling(
    key: str, model: list, caption: str, seed: int, batch: int, sampler: str = "euler"
) -> Prompt:
    """Return nodes that sample a caption as the measurement does, with standard nodes only."""
    names = ("positive", "latent", "noise", "guider", "sampler", "sampled", "images")
    ids = {name: f"{key}.{name}" for name in names}
    link = {name: [value, 0] for name, value in ids.items()}
    nodes = {
        "positive": node("CLIPTextEncode", clip=CLIP, text=caption),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=batch),
        "noise": node("RandomNoise", noise_seed=seed),
        "guider": node("BasicGuider", model=model, conditioning=link["positive"]),
        "sampler": node("KSamplerSelect", sampler_name=sampler),
        "sampled": node(
            "SamplerCustomAdvanced",
            noise=link["noise"],
            guider=link["guider"],
            sampler=link["sampler"],
            sigmas=["4", 0],
            latent_image=link["latent"],
        ),
        "images": node("VAEDecode", samples=link["sampled"], vae=VAE),
    }
    return {ids[name]: entry for name, entry in nodes.items()}


def base_nodes() -> Prompt:
    """Return model, sigmas and reward of the example by hand, under their ids there."""
    return upstream(twin(BY_HAND), "1", "4", "10")


def tuned(prompt: Prompt, class_type: str, info: dict, **inputs: object) -> Prompt:
    """Return a copy with one more settings node, right before the Train node."""
    options = input_options(info[class_type])
    widgets = {name: spec["default"] for name, spec in options.items() if "default" in spec}
    prompt, train = copy.deepcopy(prompt), find(prompt, "ChunkGRPO_TrainLoRA")
    before = prompt[train]["inputs"]["settings"]
    prompt[class_type] = node(class_type, **{**widgets, "settings": before, **inputs})
    prompt[train]["inputs"]["settings"] = [class_type, 0]
    return prompt


def forward(prompt: Prompt, info: dict, sampler: str, steps: int = 5, **inputs: object) -> Prompt:
    """Return a copy that trains with the forward form and a sampler of ComfyUI."""
    prompt = tuned(prompt, "ChunkGRPO_ForwardObjective", info, **inputs)
    prompt = change(prompt, "ChunkGRPO_ShiftedSigmas", steps=steps)
    train = find(prompt, "ChunkGRPO_TrainLoRA")
    prompt["ks"] = node("KSamplerSelect", sampler_name=sampler)
    prompt[train]["inputs"]["sampler"] = ["ks", 0]
    del prompt[train]["inputs"]["plan"]
    return upstream(prompt, train)


def with_preset(prompt: Prompt, name: str, *left_alone: str, **inputs: object) -> Prompt:
    """Return a copy whose Train node takes all that a preset gives, but for some inputs."""
    prompt, train = copy.deepcopy(prompt), find(prompt, "ChunkGRPO_TrainLoRA")
    prompt["preset"] = node("ChunkGRPO_GRPOPreset", **{"preset": name, "batch_size": -1, **inputs})
    for slot, wired in enumerate(PRESET_TO_TRAIN):
        if wired not in left_alone:
            prompt[train]["inputs"][wired] = ["preset", slot]
    return prompt


SETTINGS_NODES = tuple(
    f"ChunkGRPO_{name}"
    for name in (
        "GRPOSettings",
        "GRPOObjective",
        "GRPOExploration",
        "ForwardObjective",
        "PreferenceObjective",
    )
)


def without_inherited(prompt: Prompt) -> Prompt:
    """Return a copy whose settings nodes name only what they set."""
    named = copy.deepcopy(prompt)
    for entry in named.values():
        if entry["class_type"] in SETTINGS_NODES:
            inputs = entry["inputs"].items()
            entry["inputs"] = {k: v for k, v in inputs if v not in ("inherit", -1, "")}
    return named


def shown_text(run: Run, key: str) -> str:
    """Return the text that a node put into ``ui``."""
    return run.outputs[key]["text"][0]


def for_server(prompt: Prompt, info: dict) -> Prompt:
    """Return the prompt without inputs of ComfyUI's nodes that this server does not know."""
    return {
        key: {
            **entry,
            "inputs": {
                name: value
                for name, value in entry["inputs"].items()
                if entry["class_type"].startswith("ChunkGRPO_")
                or name in input_options(info[entry["class_type"]])
            },
        }
        for key, entry in prompt.items()
    }


def find(prompt: Prompt, class_type: str) -> str:
    """Return the id of the first node of a kind."""
    return next(key for key, entry in prompt.items() if entry["class_type"] == class_type)


def input_options(definition: dict) -> dict[str, dict]:
    """Return name -> options of every input in a node's entry of /object_info."""
    groups = definition["input"]
    return {
        name: spec[1] if len(spec) > 1 else {}
        for group in ("required", "optional")
        for name, spec in groups.get(group, {}).items()
    }
