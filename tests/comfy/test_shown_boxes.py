"""Nodes of the example workflows as the page shows them: both renderers make nodes larger than
their files say."""

from itertools import combinations

import pytest

from . import graphs
from .test_workflows import apart, label

SHOWN = """async () => {
  const canvas = window.app.canvas, graph = window.app.graph;
  const page = canvas.canvas.getBoundingClientRect(), { scale, offset } = canvas.ds;
  const shown = (node) => {
    const card = document.querySelector(`[data-node-id="${node.id}"]`);
    if (!card) return [...node.pos, ...node.size].map((v, i) => v + [0, -30, 0, 30][i]);
    const { x, y, width, height } = card.getBoundingClientRect();
    return [(x - page.x) / scale - offset[0], (y - page.y) / scale - offset[1],
            width / scale, height / scale];
  };
  return { nodes: graph.nodes.map((node) => ({ id: node.id, type: node.type, title: node.title,
                                               box: shown(node) })),
           groups: graph.groups.map((group) => [...group.pos, ...group.size]) };
}"""
LINE = 2  # rounding and the frame of a node


def corners(box, grow=0):
    x, y, width, height = box
    return x - grow, y - grow, x + width + grow, y + height + grow


def inside(box, groups):
    x0, y0, x1, y1 = corners(box, -LINE)
    return any(
        u0 <= x0 and v0 <= y0 and x1 <= u1 and y1 <= v1 for u0, v0, u1, v1 in map(corners, groups)
    )


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes-2"])
def test_no_node_hides_another_or_leaves_its_group(vue, comfy_page, model_files):
    comfy_page.use_vue_nodes(vue)
    faults = []
    try:
        for name in graphs.NAMES:
            comfy_page.load(graphs.workflow(name), name)
            comfy_page.show_all()
            shown = comfy_page.page.evaluate(SHOWN)
            for a, b in combinations(shown["nodes"], 2):
                if not apart(corners(a["box"], -LINE), corners(b["box"], -LINE)):
                    faults.append(f"{name}: {label(a)} and {label(b)} overlap")
            faults += [
                f"{name}: {label(node)} leaves its group, {node['box']}"
                for node in shown["nodes"]
                if node["type"] != "MarkdownNote" and not inside(node["box"], shown["groups"])
            ]
    finally:
        comfy_page.use_vue_nodes(False)
    assert not faults, "\n".join(faults)


HEIGHTS = """() => Object.fromEntries(window.app.graph.nodes
  .filter((node) => node.type === "ChunkGRPO_PromptSet")[0].widgets
  .filter((widget) => widget.element?.tagName === "TEXTAREA")
  .map((widget) => [widget.name, widget.computedHeight]))"""
CUT = """() => {
  const node = window.app.graph.nodes.find((node) => node.type === "ChunkGRPO_PromptSet");
  node.disconnectInput(node.inputs.findIndex((input) => input.name === "text"));
  window.app.canvas.setDirty(true, true);
}"""


def test_a_text_that_comes_over_a_link_takes_one_line(comfy_page, model_files):
    comfy_page.use_vue_nodes(False)
    comfy_page.load(graphs.workflow("01_quick_start_tiny_flux"), "linked")
    comfy_page.show_all()
    assert comfy_page.page.evaluate(HEIGHTS) == {"text": 20, "held_out_text": 20}
    comfy_page.page.evaluate(CUT)
    comfy_page.page.wait_for_timeout(700)
    heights = comfy_page.page.evaluate(HEIGHTS)
    assert heights["text"] > 50 and heights["held_out_text"] == 20


PARTS = """() => {
  const panel = document.querySelector(".score-grid").closest(".chunk-grpo");
  const card = panel.closest("[data-node-id]");
  const [own, whole] = [panel, card].map((one) => one.getBoundingClientRect().height);
  return own / whole;
}"""


def test_scored_pictures_have_the_room_of_their_node_and_not_an_empty_text_field(
    comfy_page, model_files
):
    comfy_page.use_vue_nodes(True)
    try:
        comfy_page.load(graphs.workflow("03_score_and_pick"), "room")
        comfy_page.show_all()
        comfy_page.page.wait_for_timeout(700)
        assert comfy_page.page.evaluate(PARTS) > 0.6
    finally:
        comfy_page.use_vue_nodes(False)
