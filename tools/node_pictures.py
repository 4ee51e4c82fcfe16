"""Make the picture of every help page: the node in ComfyUI's page, after it has run.

    python tools/node_pictures.py
    python tools/node_pictures.py --only TrainLoRA

A real server and a real browser run one graph of the tiny FLUX (``node_picture_graphs.py``), then a
small one that loads the LoRA which the first saved: under four minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tools.comfyui.browser import FOCUS, HIDE_THE_REST, ComfyBrowser, ComfyPage
from tools.comfyui.graphs import Prompt
from tools.comfyui.server import ROOT, ComfyServer
from tools.node_picture_graphs import FIRST_RUN, SECOND_RUN, VIEWS, View, graph_of, sockets

FOLDER = ROOT / "web" / "docs" / "images"
PREFIX = "ChunkGRPO_"
WINDOW = (1400, 1400)
LARGEST = (680, 1200)
LARGEST_SCALE, MARGIN, TITLE = 1.3, 14, 30
BYTES = 60_000

# Puts the wanted nodes into columns and the others far away, and draws only links from one column
# to another. Returns the box of the wanted nodes on the screen.
ARRANGE = """([columns, [width, height], largest, margin, title]) => {
  const canvas = window.app.canvas, graph = window.app.graph;
  const wanted = new Map(columns.flatMap((nodes, place) => nodes.map(({ id }) => [id, place])));
  for (const node of graph.nodes) if (!wanted.has(node.id)) node.pos = [40000, 40000];
  canvas.deselectAll?.();
  canvas.drawnLink ??= canvas.renderLink;
  canvas.renderLink = function (ctx, from, to, link, ...more) {
    if (wanted.get(link?.origin_id) < wanted.get(link?.target_id))
      this.drawnLink(ctx, from, to, link, ...more);
  };
  let x = 0, bottom = 0;
  for (const column of columns) {
    let y = title;
    for (const shown of column) {
      const node = graph.getNodeById(shown.id);
      node.pos = [x, y];
      node.setSize([shown.width, Math.max(shown.height, node.computeSize()[1])]);
      y += node.size[1] + title + 24;
      bottom = Math.max(bottom, node.pos[1] + node.size[1]);
    }
    x += Math.max(...column.map((shown) => graph.getNodeById(shown.id).size[0])) + 40;
  }
  const right = x - 40, page = canvas.canvas.getBoundingClientRect();
  const scale = Math.min(
    (width - 2 * margin) / right, (height - 2 * margin) / bottom, largest);
  canvas.ds.scale = scale;
  canvas.ds.offset[0] = (40 - page.left) / scale;
  canvas.ds.offset[1] = (40 - page.top) / scale;
  canvas.setDirty(true, true);
  return { x: 40 - margin, y: 40 - margin,
           width: right * scale + 2 * margin, height: bottom * scale + 2 * margin };
}"""
PREVIEWS_ARE_THERE = """(ids) => ids.every((id) => {
  const node = window.app.graph.getNodeById(id);
  return node.type !== "PreviewImage" || node.imgs?.every((image) => image.complete);
})"""
SOCKETS = """async (type) => {
  const { input, output_name } = (await window.app.getNodeDefs())[type];
  const inputs = ["required", "optional"].flatMap((group) => Object.keys(input[group] ?? {}));
  return [inputs, output_name];
}"""
CAN_RUN = "() => window.app.graph.nodes.some((n) => n.constructor.nodeData?.output_node)"
TIDY = """() => {
  window.app.extensionManager.setting.set("Comfy.NodeBadge.NodeSourceBadgeMode", "None");
  for (const widget of window.app.graph.nodes.flatMap((node) => node.widgets ?? []))
    if (widget.name === "control_after_generate") widget.value = "fixed";
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", metavar="NODE", type=_short, choices=VIEWS, help="one node id instead of all"
    )
    options = parser.parse_args()
    names = [options.only] if options.only else list(VIEWS)
    second = [name for name in names if graph_of(VIEWS[name].keys)[1]]
    first = [name for name in names if name not in second]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ComfyServer() as server, ComfyBrowser(server.url, *WINDOW) as browser:
        keys = [key for name in first for key in VIEWS[name].keys]
        make(browser, FIRST_RUN, keys + ["save"] * bool(second), first)
        if second:  # a new page, which lists the file that was saved
            make(browser, SECOND_RUN, [*VIEWS[second[0]].keys, "with_file"], second)


def make(browser: ComfyBrowser, graph: Prompt, keys: list[str], names: list[str]) -> None:
    """Run the part of a graph that some nodes need, and take the pictures of the named views."""
    page = browser.open()
    part, _ = graph_of(keys)
    ids = {key: number for number, key in enumerate(part, 1)}
    page.load_api({str(ids[key]): _renamed(entry, ids) for key, entry in part.items()})
    page.page.evaluate(TIDY)
    if page.page.evaluate(CAN_RUN):
        event, data = page.queue(seconds=1800)
        if event != "execution_success":
            sys.exit(f"{event}: {json.dumps(data, indent=1)}")
    page.page.wait_for_load_state("networkidle")
    page.page.evaluate(FOCUS, True)
    page.page.add_style_tag(content=HIDE_THE_REST)
    for name in names:
        path = FOLDER / f"{PREFIX}{name}.jpg"
        write(photograph(page, VIEWS[name], ids), path, page.page.evaluate(SOCKETS, PREFIX + name))
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)
    page.close()


def photograph(page: ComfyPage, view: View, ids: dict[str, int]) -> Image.Image:
    """Take a picture of some nodes alone."""
    columns = [
        [{"id": ids[s.key], "width": s.width, "height": s.height} for s in column]
        for column in view.columns
    ]
    arrangement = [columns, LARGEST, LARGEST_SCALE, MARGIN, TITLE]
    page.page.evaluate(ARRANGE, arrangement)
    page.page.wait_for_timeout(300)  # drawing a node may make it grow
    page.page.wait_for_function(PREVIEWS_ARE_THERE, arg=[ids[key] for key in view.keys])
    box = page.page.evaluate(ARRANGE, arrangement)
    page.page.wait_for_timeout(500)
    return Image.open(io.BytesIO(page.page.screenshot(clip=box))).convert("RGB")


def write(picture: Image.Image, path: Path, names: list[list[str]]) -> None:
    """Write a JPEG that is small enough and says which inputs and outputs its node had."""
    for quality in range(92, 40, -4):
        picture.save(path, quality=quality, optimize=True, comment=sockets(*names))
        if path.stat().st_size <= BYTES:
            return


def _short(name: str) -> str:
    return name.removeprefix(PREFIX)


def _renamed(entry: dict, ids: dict[str, int]) -> dict:
    inputs = {
        name: [str(ids[value[0]]), value[1]] if isinstance(value, list) else value
        for name, value in entry["inputs"].items()
    }
    return {**entry, "inputs": inputs}


if __name__ == "__main__":
    main()
