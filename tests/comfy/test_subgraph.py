"""The subgraph blueprint: offered by the server, put into a graph by hand, run to a LoRA file."""

from __future__ import annotations

import json

from tools.comfyui.server import PACK_NAME, ROOT

from . import graphs
from .graphs import node

NAME = "Train LoRA by Reward"
FILE = ROOT / "subgraphs" / f"{NAME}.json"
INSERTED = f"() => window.app.graph.nodes.some((node) => node.title === '{NAME}')"
ASIDE = """() => {
  const { ds } = window.app.canvas;
  [ds.scale, ds.offset] = [1, [0, 0]];
  window.app.graph.nodes.forEach((node, index) => { node.pos = [100, 100 + 300 * index]; });
  window.app.canvas.setDirty(true, true);
}"""
JOIN = """([name, ends]) => {
  const { graph } = window.app;
  const block = graph.nodes.find((node) => node.title === name);
  for (const [input, key, slot] of ends) {
    const start = graph.getNodeById(Number(key)) ?? graph.getNodeById(key);
    start.connect(slot, block, block.inputs.findIndex((end) => end.name === input));
  }
  return block.inputs.filter((end) => !end.widget && end.link === null).map((end) => end.name);
}"""
SET = """([name, wishes]) => {
  const block = window.app.graph.nodes.find((node) => node.title === name);
  for (const node of block.subgraph.nodes) {
    for (const [input, value] of Object.entries(wishes[node.type] ?? {})) {
      const slot = node.inputs.findIndex((end) => end.name === input && end.link !== null);
      if (slot >= 0) node.disconnectInput(slot);
      node.widgets.find((widget) => widget.name === input).value = value;
    }
  }
}"""


def test_the_server_lists_the_blueprint_of_this_pack(comfy):
    listed = comfy.get("/global_subgraphs")
    own = {key: entry for key, entry in listed.items() if PACK_NAME in entry["info"]["node_pack"]}
    assert [entry["name"] for entry in own.values()] == [NAME]
    entry = comfy.get(f"/global_subgraphs/{next(iter(own))}")
    assert json.loads(entry["data"]) == json.loads(FILE.read_text())


def test_the_blueprint_has_every_widget_of_its_nodes(comfy):
    (definition,) = json.loads(FILE.read_text())["definitions"]["subgraphs"]
    info = comfy.object_info()
    for entry in definition["nodes"]:
        options = graphs.input_options(info[entry["type"]])
        widgets = [name for name, spec in options.items() if "default" in spec or "options" in spec]
        shown = [end["name"] for end in entry["inputs"] if "widget" in end]
        assert set(widgets) <= set(shown), entry["type"]
        assert len(entry["widgets_values"]) == len(shown), entry["type"]


def test_the_block_is_found_in_the_page_and_trains_a_lora(comfy, comfy_server, comfy_page):
    latent = node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    reward = node("ChunkGRPO_LoadReward", name="tiny_world", colour="#2060c0", settings="", file="")
    comfy_page.load_api({"1": node("ChunkGRPO_LoadTinyFlux"), "2": reward, "3": latent})
    page = comfy_page.page
    page.evaluate(ASIDE)
    page.mouse.dblclick(900, 500)  # the search for nodes
    page.wait_for_timeout(1000)
    page.keyboard.type(NAME, delay=20)
    page.wait_for_timeout(1500)
    page.keyboard.press("Enter")
    page.wait_for_function(INSERTED, timeout=20_000)
    ends = [("model", "1", 0), ("clip", "1", 1), ("vae", "1", 2), ("reward", "2", 0)]
    assert page.evaluate(JOIN, [NAME, [*ends, ("latent", "3", 0)]]) == []
    captions = [f"a large {colour} circle on a black background" for colour in ("red", "blue")]
    other = [f"a small {colour} square on a white background" for colour in ("red", "blue")]
    wishes = {
        "ChunkGRPO_PromptSet": {
            "text": "\n".join(captions),
            "held_out_text": "\n".join(other),
            "held_out": 2,
            "variants": 1,
        },
        "ChunkGRPO_TrainLoRA": {
            "iterations": 1,
            "prompts_per_iteration": 2,
            "group_size": 4,
            "pictures_per_held_out": 1,
        },
        "ChunkGRPO_SaveLoRA": {"name": "from_the_block"},
    }
    page.evaluate(SET, [NAME, wishes])
    assert comfy_page.alerts() == []
    event, data = comfy_page.queue(seconds=300)
    assert event == "execution_success", data.get("exception_message", data)
    assert (comfy_server.loras / "from_the_block.safetensors").stat().st_size > 10_000
    assert comfy_page.errors == []
