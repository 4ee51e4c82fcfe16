"""Values that nobody means well, in every widget of every node, through POST /prompt.

Each is refused with 400 or ends in an error of ours that a user can read; and nothing is written
outside ComfyUI's folders.
"""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tools.comfyui.server import ROOT

from . import graphs
from .client import PromptRejected
from .graphs import change, find, node, upstream

MARK = "escaped"
"""In the name of every file that must never come to be."""
NUMBERS = {"INT": (0,), "FLOAT": (0.0,)}
NO_NUMBERS = [math.nan, math.inf, -1e308, 10**30, "abc", {}, [1, 2, 3]]
NAMES = [
    f"../{MARK}", f"../../../../{MARK}", f"a/../../{MARK}", f"..\\..\\{MARK}", f"/tmp/{MARK}",
    f"C:\\{MARK}", f"\\\\host\\share\\{MARK}", f"{MARK}\0.txt", "nul", "CON.txt", "..",
    MARK + "x" * 5000, f"~/{MARK}", f"{MARK}\ud800", f"file:///{MARK}",
]  # fmt: skip
URLS = [
    "http://gpu-box:8181", "https://example.test", "http://169.254.169.254/latest", "http://0.0.0.0",
    "http://localhost.evil.test", "http://127.0.0.1@evil.test", "file:///etc/passwd", "ftp://a",
    "http://a b", "javascript:alert(1)", "http://[::1", "http://2130706433", "x" * 5000, "http://\0",
]  # fmt: skip
TEXTS = {
    ("ChunkGRPO_TrainLoRA", "run_name"): NAMES,
    ("ChunkGRPO_SaveLoRA", "name"): NAMES,
    ("ChunkGRPO_PromptSet", "file"): NAMES,
    ("ChunkGRPO_PromptSet", "held_out_file"): NAMES,
    ("ChunkGRPO_PromptSet", "wildcards"): [n for n in NAMES if ".." in n or n[:2] in ("/t", "C:")],
    ("ChunkGRPO_PromptSet", "text"): ["{a|b", "a}", "__gone__", "__../../x__", "", "# x"],
    ("ChunkGRPO_LoadLoRAFile", "lora_name"): NAMES,
    ("ChunkGRPO_ApplyLoRA", "lora_name"): NAMES,
    ("ChunkGRPO_LoadReward", "url"): URLS,
    ("ChunkGRPO_LoadReward", "colour"): ["red", "#12", "#gggggg", "\0", "x" * 5000, "../x"],
    ("ChunkGRPO_LoadReward", "settings"): [
        "path=/etc/passwd", "url=http://a.test", "folders=['/']", "x", "=", "a=1\na=2",
        "unknown=1", "device=cuda", "[" * 10_000, "a=" + "[" * 10_000,
    ],
    ("ChunkGRPO_FitTaste", "taste"): ["../mine", "/etc", "nul", "", "\0", "x" * 5000, "none"],
    ("ChunkGRPO_PreferenceObjective", "taste"): ["../mine", "/etc", "nul", "", "\0", "none"],
    ("ChunkGRPO_PlanChunks", "chunk_sizes"): [
        "two", "0, 4", "-1", "nan", "1e9", "cut 0", "cut 99999999", "9" * 5000, "2, " * 5000, "\0",
    ],
    ("ChunkGRPO_PlanChunks", "weights"): ["nan", "-1", "1e999", "x" * 5000, "1, 2, 3", "inf, 1"],
    ("ChunkGRPO_PickPictures", "taste"): NAMES,
    ("ChunkGRPO_PickPictures", "picks"): [
        "hm", "liked: 0", "liked: 99", "best: -1", "better: 1 < 2", "stars: 6", "\0", "x" * 20_000,
    ],
    ("ChunkGRPO_GRPOSettings", "lora_targets"): ["(", "[", "*", "(?P<a"],
}  # fmt: skip
"""(Node, widget) -> texts, none of which can be meant."""
CLASSES = (
    "LoadReward", "PromptSet", "PlanChunks", "FlowSDESampler", "ShiftedSigmas", "GRPOSettings",
    "GRPOObjective", "GRPOExploration", "GRPOPreset", "TrainLoRA", "SaveLoRA", "LoadLoRAFile",
    "ApplyLoRA", "ScoreImages", "PickBestImages", "CombineRewards", "EvaluateLoRA", "PlotTraining",
    "RollOutTrajectories", "AnalyzeTemporalDynamics", "ForwardObjective", "FitTaste",
    "PreferenceObjective",
    "BalanceRewards",
    "PickPictures",
)  # fmt: skip
TINY = "ChunkGRPO_LoadTinyFlux"
"""The one node without widgets."""
CAPTIONS = "\n".join(f"a large {colour} circle on a black background" for colour in ("red", "blue"))
OTHERS = CAPTIONS.replace("large", "small")


@pytest.fixture(scope="module")
def lora(comfy_server):
    """Give the name of a small LoRA file that fits the tiny FLUX no more than it must."""
    path = comfy_server.loras / "hostile_base.safetensors"
    key = "diffusion_model.double_blocks.0.img_attn.qkv"
    save_file(
        {f"{key}.lora_A.weight": torch.zeros(1, 8), f"{key}.lora_B.weight": torch.zeros(8, 1)}, path
    )
    yield path.name
    path.unlink()


def base(kind, info, lora):
    """A prompt that ends in one node of the kind, with its first values -> prompt, id."""
    examples = [graphs.small(graphs.twin(name)) for name in graphs.TINY]
    for example in examples:
        if any(entry["class_type"] == kind for entry in example.values()):
            prompt = copy.deepcopy(example)
            break
    else:
        prompt = {}
    prompt["file"] = node("ChunkGRPO_LoadLoRAFile", lora_name=lora)
    if kind not in {entry["class_type"] for entry in prompt.values()}:
        start = graphs.small(graphs.twin(graphs.BY_HAND))
        prompt |= start
        links = {
            "MODEL": graphs.MODEL, "CLIP": graphs.CLIP, "VAE": graphs.VAE,
            "LORA_MODEL": ["file", 0],
            "CHUNK_GRPO_REWARD": [find(start, "ChunkGRPO_LoadReward"), 0],
            "CHUNK_GRPO_PROMPTS": [find(start, "ChunkGRPO_PromptSet"), 0],
            "IMAGE": ["picture", 0],
        }  # fmt: skip
        prompt["picture"] = node("EmptyImage", width=16, height=16, batch_size=2, color=0)
        prompt["node"] = node(kind)
        for group in ("required", "optional"):
            for name, spec in info[kind]["input"].get(group, {}).items():
                if spec[0] in links and group == "required":
                    prompt["node"]["inputs"][name] = links[spec[0]]
                elif len(spec) > 1 and "default" in spec[1]:
                    prompt["node"]["inputs"][name] = spec[1]["default"]
        if kind == "ChunkGRPO_PreferenceObjective":
            prompt["node"]["inputs"]["taste"] = "example"  # which has picks
    for entry in prompt.values():  # no training only to have a LoRA
        for name, value in entry["inputs"].items():
            if isinstance(value, list) and prompt[value[0]]["class_type"] == "ChunkGRPO_TrainLoRA":
                if name == "lora":
                    entry["inputs"][name] = ["file", 0]
    prompt = change(prompt, "ChunkGRPO_PromptSet", text=CAPTIONS, held_out_text=OTHERS)
    key = find(prompt, kind)
    prompt[key]["inputs"].pop("log", None)
    prompt = upstream(prompt, key)
    if not info[kind].get("output_node"):
        prompt["end"] = node("PreviewAny", source=[key, 0])
    return prompt, key


def hostile(kind, info):
    """(Widget, value) for every widget of a node."""
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    for name, spec in inputs.items():
        type_of = "COMBO" if isinstance(spec[0], list) else spec[0]
        if (kind, name) in TEXTS:
            values = TEXTS[kind, name]
        elif type_of in NUMBERS:
            values = NO_NUMBERS
        elif type_of == "COMBO":
            values = ["no such choice", f"../{MARK}", "\0", 17, {}]
        else:
            values = []
        yield from ((name, value) for value in values)


def tree(folder: Path):
    return {path for path in folder.rglob("*") if MARK in path.name}


@pytest.mark.parametrize("name", CLASSES)
def test_a_hostile_value_is_refused_in_words(name, comfy, comfy_server, lora):
    kind, all_info = f"ChunkGRPO_{name}", comfy.object_info()
    prompt, key = base(kind, all_info, lora)
    faults = []
    for widget, value in hostile(kind, all_info[kind]):
        attempt = copy.deepcopy(prompt)
        attempt[key]["inputs"][widget] = value
        if widget == "url":
            attempt[key]["inputs"]["name"] = "remote_http"
        if widget == "colour":
            attempt[key]["inputs"]["name"] = "target_colour"
        fault = fault_of(comfy, attempt)
        if fault:
            faults.append(f"{widget} = {json.dumps(value)[:60]}: {fault}")
    assert not faults, "\n".join(faults)
    for folder in (comfy_server.base.parent, Path("/tmp"), Path.home()):
        assert not [path for path in folder.glob(f"*{MARK}*")]
    assert not tree(comfy_server.base)
    assert not tree(ROOT)


def fault_of(comfy, prompt):
    """What is wrong with how a prompt was refused; empty if nothing is."""
    try:
        prompt_id = comfy.submit(prompt)
    except PromptRejected as error:
        if error.status not in (200, 400):
            return f"HTTP {error.status}"
        said = " ".join(error.messages())
        return f"validation broke: {said[:300]}" if "exception_during" in said else ""
    run = comfy.wait(prompt_id, 60)
    if run.ok:
        return "was accepted"
    first = run.error.partition("\n")[0]
    kind = re.match(r"\S+ #\S+: (\S+): ", first + " ")
    if not kind or kind[1] not in ("ValueError", "FileNotFoundError"):
        places = re.findall(r'File "([^"]+)", line (\d+)', run.error)
        return f"{first[:200]} at {':'.join(places[-1])}"
    return ""


def test_more_than_a_hundred_values_are_tried(comfy):
    info = comfy.object_info()
    kinds = [f"ChunkGRPO_{name}" for name in CLASSES]
    assert set(kinds) == {kind for kind in info if kind.startswith("ChunkGRPO_")} - {TINY}
    assert sum(len(list(hostile(kind, info[kind]))) for kind in kinds) >= 600
