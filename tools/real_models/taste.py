"""The example in which somebody picks first: the graph of a model, with a taste as its reward."""

from __future__ import annotations

from tools.comfyui.graphs import node

from .graph import BOTTOM, STEP, TOP, layout_of, prompt_of, text
from .models import ModelExample

__all__ = ["taste_layout_of", "taste_prompt_of"]

PROMPTS, PICTURES = 10, 4
"""Shown to the person: so many pictures of so many prompts."""
DUELS = 20
BEFORE, WIDER = 1000, 1500
"""What lies right of this place makes room, so many pixels."""


def taste_prompt_of(model: ModelExample) -> dict[str, dict]:
    """API-format prompt."""
    nodes = prompt_of(model)
    train, evaluate = nodes["40"]["inputs"], nodes["51"]["inputs"]
    drawn = {key: train[key] for key in ("model", "prompts", "sigmas", "latent", "cfg")}
    nodes["60"] = node("ChunkGRPO_FlowSDESampler", rule="ode", eta=0.0)
    nodes["61"] = node(
        "ChunkGRPO_RollOutTrajectories", **drawn, sampler=["60", 0], prompt_count=PROMPTS,
        group_size=PICTURES, seed=0,
    )  # fmt: skip
    nodes["62"] = node("VAEDecode", samples=["61", 1], vae=train["vae"])
    nodes["63"] = node(
        "ChunkGRPO_PickPictures", images=["62", 0], prompt=["61", 2], taste="mine", kind="duels",
        wait=True, picks="",
    )  # fmt: skip
    nodes["64"] = node(
        "ChunkGRPO_FitTaste", taste=["63", 2], encoder="clip_vision", at_least=20, pessimism=0.0,
        dark=True,
    )  # fmt: skip
    nodes["65"] = node(
        "ChunkGRPO_BalanceRewards", taste=["64", 0], prompt_following=["30", 0], balance=0.5
    )
    nodes["66"] = node("PreviewAny", source=["64", 1])
    nodes["67"] = node("PreviewImage", images=["64", 2])
    train["reward"] = evaluate["reward"] = ["65", 0]
    evaluate |= {"duels": DUELS, "log": ["40", 2]}
    return dict(sorted(nodes.items()))


def taste_layout_of(model: ModelExample) -> dict:
    """Layout as ``workflow_from_api.py`` takes it."""
    layout = layout_of(model)
    notes = {note["title"]: note for note in layout["notes"]}
    notes["Read me first"]["text"] = (
        text("read_me_taste.md") + "\n\n" + _without_head(notes["Read me first"]["text"])
    )
    notes["The reward"]["text"] = text("reward_taste.md")
    for entry in layout["nodes"].values():
        entry["pos"][0] += WIDER * (entry["pos"][0] >= BEFORE)
    for note in layout["notes"]:
        note["pos"][0] += WIDER * (note["pos"][0] >= BEFORE)
    for group in layout["groups"]:
        group["bounding"][0] += WIDER * (group["bounding"][0] >= BEFORE)
    layout["nodes"]["30"]["title"] = "What follows the prompt"
    y = TOP
    for key, height, title in (
        ("60", 130, "Sampler for the pictures to pick from"),
        ("61", 240, f"{PICTURES} pictures of {PROMPTS} prompts"),
        ("62", 50, None),
    ):
        layout["nodes"][key] = {"pos": [1020, y], "size": [380, height]}
        layout["nodes"][key] |= {"title": title} if title else {}
        y += height + STEP
    layout["notes"].append(
        {"title": "How to pick", "text": text("how_to_pick.md"), "pos": [1020, y],
         "size": [380, BOTTOM - 20 - y]}
    )  # fmt: skip
    picks = {"pos": [1440, TOP], "size": [520, BOTTOM - 20 - TOP], "title": "Click the better one"}
    layout["nodes"]["63"] = picks | {"color": "#322", "bgcolor": "#533"}
    y = TOP
    for key, height, title in (
        ("64", 210, None),
        ("66", 330, "How well it knows you"),
        ("67", 0, "The same as a picture"),
        ("65", 110, "More taste, or more of the prompt"),
    ):
        height = height or BOTTOM - 20 - y - 110 - STEP
        layout["nodes"][key] = {"pos": [2020, y], "size": [420, height]}
        layout["nodes"][key] |= {"title": title} if title else {}
        y += height + STEP
    layout["groups"] += [
        {"title": "1. Draw and pick", "bounding": [1000, 0, 980, BOTTOM], "color": "#8a3535"},
        {"title": "2. Your taste", "bounding": [2000, 0, 460, BOTTOM], "color": "#8a3535"},
    ]
    return layout


def _without_head(note: str) -> str:
    """A note without its first paragraph."""
    return note.partition("\n\n")[2]
