"""Write the subgraph blueprint that ComfyUI's node library offers: prompts in, a LoRA file out.

    python tools/make_subgraph.py

The nodes are those of a real model's example. The page of a real ComfyUI turns them into a
subgraph; what it joins to outside only shows it which inputs and outputs there are.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from workflow_from_api import write_json

from tools.comfyui import graphs
from tools.comfyui.browser import ComfyBrowser, ComfyPage
from tools.comfyui.graphs import PRESET_TO_TRAIN
from tools.comfyui.server import ROOT, ComfyServer

NAME = "Train LoRA by Reward"
FILE = ROOT / "subgraphs" / f"{NAME}.json"
IDENTITY = "6d0c5d7e-3c1f-5b0a-9d55-2f6c63c0a7b1"  # ComfyUI would take new ones each time
EXAMPLE = "10_flux1_dev_bf16"
PROMPTS, TRAIN, SAVE = INSIDE = ("10", "40", "42")
SHOWN = [  # widgets of the nodes inside that the subgraph has, too
    [PROMPTS, "text"], [PROMPTS, "held_out_text"], [PROMPTS, "held_out"], [TRAIN, "recipe"],
    [TRAIN, "iterations"], [TRAIN, "seed"], [SAVE, "name"],
]  # fmt: skip
PLACES = {
    PROMPTS: ([0, 0], [420, 760]),
    TRAIN: ([480, 0], [460, 1130]), SAVE: ([1000, 0], [420, 142]),
}  # fmt: skip
SIZE = [420, 640]
DESCRIPTION = (
    "Prompts, a tested recipe, training and a LoRA file in one node. Connect a model with its CLIP "
    "and VAE and a reward; an empty latent gives another picture size than 512 x 512."
)
CONVERT = """([inside, places, shown, name]) => {
  const graph = window.app.graph;
  const find = (key) => graph.getNodeById(Number(key)) ?? graph.getNodeById(key);
  for (const [key, [pos, size]] of Object.entries(places)) {
    find(key).pos = pos;
    find(key).setSize(size);
  }
  const { subgraph, node } = graph.convertToSubgraph(new Set(inside.map(find)));
  subgraph.name = node.title = name;
  node.properties.proxyWidgets = shown;
  return node.id;
}"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    with ComfyServer() as server, ComfyBrowser(server.url) as browser:
        write_json(FILE, blueprint(browser.open()))


def outside() -> dict:
    """Nodes of the example that are to be inside, with something at every end that is to be out."""
    nodes = graphs.upstream(graphs.twin(EXAMPLE), SAVE)
    kept = {key: nodes[key] for key in INSIDE}
    kept |= {
        "1": graphs.node("ChunkGRPO_LoadTinyFlux"),
        "2": nodes["30"],
        "3": graphs.node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "50": graphs.node("ChunkGRPO_ApplyLoRA", model=["1", 0], lora=[TRAIN, 0]),
        "51": graphs.node("PreviewImage", images=[TRAIN, 3]),
        "52": graphs.node("PreviewAny", source=[TRAIN, 4]),
        "53": graphs.node("PreviewAny", source=[SAVE, 0]),
    }
    kept[PROMPTS]["inputs"]["clip"] = ["1", 1]
    ends = {"model": ["1", 0], "vae": ["1", 2], "reward": ["2", 0], "latent": ["3", 0]}
    train = kept[TRAIN]["inputs"]
    for wired in PRESET_TO_TRAIN:  # the recipe says them
        train.pop(wired)
    train |= ends | {"recipe": "quick", "iterations": 30}
    kept[SAVE]["inputs"]["name"] = "chunk_grpo/lora"
    return kept


def blueprint(page: ComfyPage) -> dict:
    """Make the subgraph in the page; return a workflow of this one node, as blueprints are."""
    page.load_api(outside(), NAME)
    key = page.page.evaluate(CONVERT, [INSIDE, PLACES, SHOWN, NAME])
    workflow = page.serialize()
    (definition,) = workflow["definitions"]["subgraphs"]
    (node,) = (node for node in workflow["nodes"] if node["id"] == key)
    node |= {"type": IDENTITY, "pos": [0, 0], "size": SIZE, "order": 0}
    definition |= {"id": IDENTITY, "category": "training/chunk-grpo", "description": DESCRIPTION}
    for side in ("inputs", "outputs"):
        for end in definition[side]:
            end["id"] = str(uuid.uuid5(uuid.UUID(IDENTITY), f"{side}.{end['name']}"))
    for end in node["inputs"]:
        end["link"] = None
    for end in node["outputs"]:
        end["links"] = []
    return {
        "revision": 0,
        "last_node_id": node["id"],
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {},
    }


if __name__ == "__main__":
    main()
