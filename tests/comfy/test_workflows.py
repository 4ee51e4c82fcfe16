"""The example workflows: whole files, and what a person sees who opens them in ComfyUI's page."""

from itertools import combinations, permutations

import pytest
from PIL import Image

from tools.comfyui.graphs import EXAMPLES
from tools.comfyui.server import PACK_NAME

from . import graphs

TITLE = 30  # height of a node's title bar, above its position
BADGE = (110, 24)  # of the pack's name, above the right end of the title bar
SHRINK = """(changes) => {
  for (const [key, inputs] of Object.entries(changes)) {
    const node = window.app.graph.getNodeById(key) ?? window.app.graph.getNodeById(Number(key));
    for (const [name, value] of Object.entries(inputs)) {
      const slot = node.inputs.findIndex((input) => input.name === name && input.link !== null);
      if (slot >= 0) node.disconnectInput(slot);
      node.widgets.find((widget) => widget.name === name).value = value;
    }
  }
}"""
examples = pytest.mark.parametrize("name", graphs.NAMES)
workflow = graphs.workflow


def box(node):
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def badge(node):
    """Return the place of the pack's name; a node of ComfyUI has none."""
    _, top, right, _ = box(node)
    ours = node["type"].startswith("ChunkGRPO_")
    width, height = BADGE if ours else (0, 0)
    return right - width, top - height, right, top


def apart(one, other):
    (x0, y0, x1, y1), (u0, v0, u1, v1) = one, other
    return x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0


def label(node):
    return f"{node.get('title') or node['type']} #{node['id']}"


# The files


def test_every_example_is_known_here():
    files = [sorted(path.stem for path in folder.glob("*.json")) for folder in
             (EXAMPLES, EXAMPLES / "api")]  # fmt: skip
    assert files == [list(graphs.NAMES)] * 2


@examples
def test_an_example_has_a_small_thumbnail_of_its_graph(name):
    path = EXAMPLES / f"{name}.jpg"
    assert path.stat().st_size <= 200_000
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 300
        assert len(picture.getcolors(10**7)) > 1000


@pytest.mark.parametrize("name", graphs.TINY)
def test_a_note_says_what_to_expect(name):
    notes = [node for node in workflow(name)["nodes"] if node["type"] == "MarkdownNote"]
    text = notes[0]["widgets_values"][0]
    assert 5 <= len([line for line in text.splitlines() if line.strip()]) <= 8
    assert "CPU cores" in text


@examples
def test_links_agree_with_their_ends(name):
    graph = workflow(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"])
    links = {link[0]: link for link in graph["links"]}
    for number, start, out, end, slot, kind in links.values():
        assert number in nodes[start]["outputs"][out]["links"]
        assert nodes[end]["inputs"][slot]["link"] == number
        assert kind == nodes[start]["outputs"][out]["type"] or nodes[end]["type"] == "PreviewAny"
    ends = [i["link"] for n in nodes.values() for i in n["inputs"] if i["link"] is not None]
    starts = [k for n in nodes.values() for o in n["outputs"] for k in o["links"] or ()]
    assert sorted(ends) == sorted(starts) == sorted(links)


@examples
def test_nodes_do_not_overlap_and_lie_in_one_group(name):
    graph = workflow(name)
    for a, b in combinations(graph["nodes"], 2):
        assert apart(box(a), box(b)), f"{label(a)} and {label(b)} overlap"
    for a, b in permutations(graph["nodes"], 2):
        assert apart(badge(a), box(b)), f"the name above {label(a)} hides a part of {label(b)}"
    for node in graph["nodes"]:
        x0, y0, x1, y1 = box(node)
        around = [
            group["title"]
            for group in graph["groups"]
            for x, y, width, height in [group["bounding"]]
            if x <= x0 and y <= y0 and x1 <= x + width and y1 <= y + height
        ]
        assert len(around) == 1 or node["type"] == "MarkdownNote", f"{label(node)} is in {around}"


@examples
def test_a_second_run_repeats_the_first(name):
    for node in workflow(name)["nodes"]:
        assert "randomize" not in node.get("widgets_values", []), label(node)


# In the page


def changes(whole, small):
    """Return node -> input -> value for what a small copy of a prompt has changed."""
    return {
        key: {
            name: value
            for name, value in entry["inputs"].items()
            if whole[key]["inputs"].get(name) != value
        }
        for key, entry in small.items()
    }


def arrangement(graph):
    """Return what a person sees and saves of a graph, without the order of things."""
    keys = ("type", "pos", "size", "title", "mode", "widgets_values", "color", "bgcolor")
    nodes = {node["id"]: {key: node.get(key) for key in keys} for node in graph["nodes"]}
    groups = sorted((g["title"], tuple(g["bounding"])) for g in graph["groups"])
    return nodes, sorted(graph["links"]), groups


@examples
def test_an_example_opens_as_its_api_twin(name, comfy, model_files, comfy_page):
    comfy_page.load(workflow(name), name)
    assert comfy_page.unknown_types() == []
    info = comfy.object_info()
    shown = graphs.for_server(comfy_page.prompt(), info)  # the page has widgets of its own
    twin = graphs.for_server(graphs.twin(name), info)
    assert graphs.without_inherited(shown) == graphs.without_inherited(twin)
    assert comfy_page.alerts() == []
    assert comfy_page.errors == []


@examples
def test_saving_and_opening_again_changes_nothing(name, model_files, comfy_page):
    comfy_page.load(workflow(name), name)
    prompt, saved = comfy_page.prompt(), comfy_page.serialize()
    comfy_page.load(saved, name)
    assert comfy_page.prompt() == prompt
    assert arrangement(comfy_page.serialize()) == arrangement(saved)
    assert comfy_page.alerts() == []


@pytest.mark.parametrize("name", graphs.TINY)
def test_every_cpu_example_runs_in_the_page(name, comfy, comfy_page):
    comfy_page.load(workflow(name), name)
    whole = graphs.twin(name)
    comfy_page.page.evaluate(SHRINK, changes(whole, graphs.small(whole)))
    event, data = comfy_page.queue(seconds=300)
    assert event == "execution_success", data
    outputs = comfy.wait(data["prompt_id"], 10).outputs
    for key, entry in whole.items():
        if entry["class_type"] in ("PreviewImage", "SaveImage"):
            assert outputs[key]["images"], f"{entry['class_type']} #{key} shows nothing"
    assert comfy_page.alerts() == []
    assert comfy_page.errors == []


APP = """() => {
  const { graph } = window.app, { inputs, outputs } = graph.extra.linearData;
  const has = ([id, name]) => graph.getNodeById(id).widgets.some((widget) => widget.name === name);
  const isEnd = (id) => graph.getNodeById(id).constructor.nodeData.output_node;
  return [inputs.map(has), outputs.map(isEnd)];
}"""


def test_the_form_of_the_quick_start_names_inputs_and_outputs_that_exist(comfy_page):
    """Newer pages show it as an app; the panel of Train LoRA is one of its inputs."""
    comfy_page.load(workflow(graphs.QUICK_START), graphs.QUICK_START)
    assert comfy_page.page.evaluate(APP) == [[True] * 4, [True] * 2]


@examples
def test_comfyui_offers_the_example_as_a_template(name, comfy):
    assert name in comfy.get("/api/workflow_templates")[PACK_NAME]
    folder = f"/api/workflow_templates/{PACK_NAME}"
    assert comfy.request(f"{folder}/{name}.json")[0] == 200
    assert comfy.request(f"{folder}/{name}.jpg")[0] == 200
