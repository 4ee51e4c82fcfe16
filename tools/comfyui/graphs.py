"""API-format prompts: the example workflows, their nodes, and parts of them."""

from __future__ import annotations

import copy
import json

from .server import ROOT

EXAMPLES = ROOT / "example_workflows"

PRESET_TO_TRAIN = (
    "settings", "sampler", "sigmas", "plan", "learning_rate", "rank", "alpha", "iterations",
    "prompts_per_iteration", "group_size",
)  # fmt: skip
"""Inputs of the Train node, in the order of the outputs of the preset that belong to them."""

Prompt = dict[str, dict]


def twin(name: str) -> Prompt:
    """Read the API form of an example workflow."""
    return json.loads((EXAMPLES / "api" / f"{name}.json").read_text())


def workflow(name: str) -> dict:
    """Read an example workflow as ComfyUI's page takes it."""
    return json.loads((EXAMPLES / f"{name}.json").read_text())


def node(class_type: str, **inputs: object) -> dict:
    """Make one node."""
    return {"class_type": class_type, "inputs": inputs}


def change(prompt: Prompt, class_type: str, **inputs: object) -> Prompt:
    """Return a copy with other inputs in all nodes of a kind."""
    changed = copy.deepcopy(prompt)
    for entry in changed.values():
        if entry["class_type"] == class_type:
            entry["inputs"].update(inputs)
    return changed


def upstream(prompt: Prompt, *ends: str) -> Prompt:
    """Return the given nodes and all that they need."""
    wanted, todo = {}, list(ends)
    while todo:
        key = todo.pop()
        if key not in wanted:
            wanted[key] = copy.deepcopy(prompt[key])
            links = prompt[key]["inputs"].values()
            todo += [value[0] for value in links if isinstance(value, list)]
    return wanted
