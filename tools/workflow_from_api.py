"""Turn an API-format prompt into a workflow file for ComfyUI's page, laid out as wished.

    python tools/workflow_from_api.py example_workflows/api/01_name.json \
        example_workflows/01_name.json --layout tools/layouts/01_name.json \
        --twin example_workflows/api/01_name.json

The page of a real ComfyUI makes the workflow, so that links, sockets and widget values are right;
it is then loaded again, and must give the same prompt. The layout file is optional:

    {"nodes": {"3": {"pos": [400, 60], "size": [320, 400], "title": "Train", "color": "#232"}},
     "groups": [{"title": "Reward", "bounding": [380, 0, 360, 480], "color": "#3f789e"}],
     "notes": [{"title": "Read me", "text": "Press **Queue**.", "pos": [0, 0], "size": [300, 200]}],
     "newer": {"17": {"bypass": false}}}

A node that the layout leaves out stays where the page put it. ``newer`` holds inputs that only a
newer ComfyUI has, and there insists on: they go into the twin, and older servers overlook them.
Seeds stay fixed from run to run.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tools.comfyui.browser import ComfyBrowser, ComfyPage
from tools.comfyui.server import ComfyServer

NODE_FIELDS = ("pos", "size", "title", "color", "bgcolor", "flags")

FOLLOWS_THEME = "chunk_grpo_follows_theme"
"""Property of a node that draws on the background of the page when its template is opened
(``web/js/plots.js``)."""

VIEW_SCALE = 0.65  # below, ComfyUI leaves the texts out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prompt", type=Path, help="API-format JSON")
    parser.add_argument("workflow", type=Path, help="file to write: UI-format JSON")
    parser.add_argument("--layout", type=Path, help="JSON with nodes, groups and notes")
    parser.add_argument("--twin", type=Path, help="file to write: the prompt the workflow gives")
    parser.add_argument("--picture", type=Path, help="file to write: .jpg or .png of the graph")
    parser.add_argument("--run", action="store_true", help="run it before the picture is taken")
    options = parser.parse_args()
    prompt = json.loads(options.prompt.read_text())
    layout = json.loads(options.layout.read_text()) if options.layout else {}
    with ComfyServer() as server, ComfyBrowser(server.url) as browser:
        page = browser.open()
        workflow, twin = convert(page, prompt, layout, options.workflow.stem)
        write_json(options.workflow, workflow)
        if options.twin:
            write_json(options.twin, twin)
        if options.run:
            name, data = page.queue(seconds=1800)
            if name != "execution_success":
                sys.exit(f"{name}: {json.dumps(data, indent=1)}")
        if options.picture:
            page.screenshot(options.picture, graph_only=True)


def convert(page: ComfyPage, prompt: dict, layout: dict, name: str) -> tuple[dict, dict]:
    """Return the workflow of a prompt and the prompt that this workflow gives.

    Raises:
        ValueError: The page does not know a node, or the two prompts differ.
    """
    newer = layout.get("newer", {})
    prompt = {
        node: {**entry, "inputs": _without(entry["inputs"], newer.get(node, {}))}
        for node, entry in prompt.items()
    }
    page.load_api(prompt, name)
    if unknown := page.unknown_types():
        raise ValueError(f"unknown node types: {', '.join(unknown)}")
    page.load({**arrange(page.serialize(), layout), "id": workflow_id(name)}, name)
    workflow, twin = page.serialize(), page.prompt()
    for node in sorted(prompt.keys() | twin.keys()):
        sent, got = prompt.get(node), twin.get(node)
        if sent is None or got is None or sent["class_type"] != got["class_type"]:
            raise ValueError(f"node {node} became {got} from {sent}")
        changed = {
            key: (value, got["inputs"].get(key))
            for key, value in sent["inputs"].items()
            if got["inputs"].get(key) != value
        }
        if changed:
            raise ValueError(f"node {node} ({sent['class_type']}) changed inputs: {changed}")
    for node, inputs in newer.items():
        twin[node]["inputs"].update(inputs)
    for node in workflow["nodes"]:
        if any(slot["name"] == "dark" for slot in node.get("inputs", [])):
            node["properties"][FOLLOWS_THEME] = True
    return workflow, twin


def workflow_id(name: str) -> str:
    """An id that stays when the file is made again: panels tell workflows apart by it."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"chunk-grpo/{name}"))


def _without(inputs: dict, left_out: dict) -> dict:
    return {name: value for name, value in inputs.items() if name not in left_out}


def arrange(workflow: dict, layout: dict) -> dict:
    """Move, size and name the nodes of a workflow; add groups and notes."""
    wishes = layout.get("nodes", {})
    if strange := wishes.keys() - {str(node["id"]) for node in workflow["nodes"]}:
        raise ValueError(f"the layout names unknown nodes: {', '.join(sorted(strange))}")
    for node in workflow["nodes"]:
        wish = wishes.get(str(node["id"]), {})
        node.update({key: wish[key] for key in NODE_FIELDS if key in wish})
        if "models" in wish:  # the page offers to download what is missing of these
            node["properties"]["models"] = wish["models"]
        values = node.get("widgets_values", [])
        node["widgets_values"] = ["fixed" if value == "randomize" else value for value in values]
    workflow["groups"] = [
        {"id": number, "font_size": 24, "flags": {}, **group}
        for number, group in enumerate(layout.get("groups", []), 1)
    ]
    for note in layout.get("notes", []):
        workflow["last_node_id"] += 1
        workflow["nodes"].append(
            {
                "id": workflow["last_node_id"],
                "type": "MarkdownNote",
                "pos": note["pos"],
                "size": note["size"],
                "title": note.get("title", "Note"),
                "flags": {},
                "order": 0,
                "mode": 0,
                "inputs": [],
                "outputs": [],
                "properties": {},
                "widgets_values": [note["text"]],
                "color": note.get("color", "#432"),
                "bgcolor": note.get("bgcolor", "#653"),
            }
        )
    corners = [node["pos"] for node in workflow["nodes"]]
    corners += [group["bounding"][:2] for group in workflow["groups"]]
    left, top = (min(corner[axis] for corner in corners) for axis in (0, 1))
    if app := layout.get("app"):  # what newer pages show of it as a form
        workflow["extra"]["linearData"] = app
    workflow["extra"]["ds"] = {"scale": VIEW_SCALE, "offset": [120 - left, 160 - top]}
    return workflow


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
