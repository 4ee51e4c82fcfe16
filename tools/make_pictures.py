"""Make every picture of the docs that comes from ComfyUI's page, and the examples' thumbnails.

    python tools/make_pictures.py

The examples of the tiny FLUX run as they are, in a real server and a real browser: under ten
minutes on two CPU cores. ``--quick`` trains two iterations, to see the layout only. Thumbnails of
the real models' examples come from ``model_examples.py``.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tools.card import card
from tools.comfyui.browser import ENDED, FOCUS, HIDE_THE_REST, ComfyBrowser, ComfyPage
from tools.comfyui.server import ROOT, ComfyServer

EXAMPLES = ROOT / "example_workflows"
IMAGES = ROOT / "docs" / "images"
WINDOW = (2400, 1300)
THUMBNAIL_WIDTH, THUMBNAIL_BYTES = 1280, 200_000

PICTURES = {  # workflow -> picture of its graph after a run, if the docs have one
    "01_quick_start_tiny_flux": "quick_start_graph",
    "02_temporal_dynamics": "temporal_dynamics_graph",
    "03_score_and_pick": None,
    "04_use_the_lora": "use_the_lora_graph",
    "05_grpo_preset": None,
    "06_few_steps": None,
    "07_teach_your_taste": "teach_your_taste_graph",
    "08_every_step_by_hand": "by_hand_graph",
}
NOTHING_NEEDED = "Nothing to download: the tiny FLUX on a CPU"
CARDS = {  # workflow -> title and line of its thumbnail, and the node whose result it shows
    "01_quick_start_tiny_flux": (
        "Quick start", "A whole training in seven nodes", "PreviewImage"
    ),
    "02_temporal_dynamics": (
        "Temporal dynamics", "How much each step changes a picture", "ChunkGRPO_PlanChunks"
    ),
    "03_score_and_pick": (
        "Score and pick", "Pictures by their reward, best first", "ChunkGRPO_ScoreImages"
    ),
    "04_use_the_lora": (
        "Use the LoRA", "On all steps or on some, measured", "ChunkGRPO_EvaluateLoRA"
    ),
    "05_grpo_preset": (
        "A published recipe", "Every value with its source", "ChunkGRPO_TrainLoRA"
    ),
    "06_few_steps": (
        "Few steps", "Five Euler steps, or your own sampler", "ChunkGRPO_TrainLoRA"
    ),
    "07_teach_your_taste": (
        "Teach your taste", "Clicks on pictures become the reward", "ChunkGRPO_PickPictures"
    ),
    "08_every_step_by_hand": (
        "Every step by hand", "A node for all that a recipe says", "ChunkGRPO_TrainLoRA"
    ),
}  # fmt: skip
CLOSE_UPS = {  # workflow -> nodes of which there is a picture of their own, after the run
    "02_temporal_dynamics": {"ChunkGRPO_PlanChunks": "chunk_editor"},
    "04_use_the_lora": {"ChunkGRPO_EvaluateLoRA": "pairs"},
    "07_teach_your_taste": {
        "ChunkGRPO_FitTaste": "fit_taste",
        "ChunkGRPO_EvaluateLoRA": "true_taste",
    },
    "08_every_step_by_hand": {"ChunkGRPO_ScoreImages": "score_grid"},
}
WATCHED, WATCHED_AT = "01_quick_start_tiny_flux", 0.8
"""The training that has its picture taken while it runs, and when."""
SHORT = {"ChunkGRPO_TrainLoRA": {"iterations": 2, "group_size": 4}}
TRAINS = (
    "01_quick_start_tiny_flux", "04_use_the_lora", "05_grpo_preset", "06_few_steps",
    "07_teach_your_taste", "08_every_step_by_hand",
)  # fmt: skip
QUICK = dict.fromkeys(TRAINS, SHORT)
SET_WIDGETS = """(wishes) => {
  for (const node of window.app.graph.nodes)
    for (const [name, value] of Object.entries(wishes[node.type] ?? {}))
      node.widgets.find((widget) => widget.name === name).value = value;
}"""

HAS_DONE = """(part) => {
  const text = document.querySelector(".monitor .head .grow")?.textContent ?? "";
  const progress = text.match(/^(\\d+) \\/ (\\d+)/);
  return progress && Number(progress[1]) >= part * Number(progress[2]);
}"""
PANEL = """(type) => {
  const node = window.app.graph.nodes.find((n) => n.comfyClass === type);
  const panel = node.widgets?.find((w) => w.type === "CHUNK_GRPO_PANEL")?.element;
  if (!panel) return null;
  const { x, y, width, height } = panel.getBoundingClientRect();
  return { x, y, width, height };
}"""
SHOW_NODE = """([type, scale]) => {
  const { canvas, graph } = window.app;
  const node = graph.nodes.find((n) => n.comfyClass === type);
  const page = canvas.canvas.getBoundingClientRect();
  canvas.deselectAll?.();
  canvas.ds.scale = scale;
  canvas.ds.offset[0] = (30 - page.left) / scale - node.pos[0];
  canvas.ds.offset[1] = (30 - page.top) / scale - node.pos[1] + 32;
  canvas.setDirty(true, true);
  const [width, height] = [node.size[0] * scale + 16, (node.size[1] + 32) * scale + 12];
  return { x: 22, y: 26, width, height };
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="train two iterations only")
    parser.add_argument("--only", choices=PICTURES, help="one workflow instead of all")
    options = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    with ComfyServer() as server, ComfyBrowser(server.url, *WINDOW) as browser:
        for name in [options.only] if options.only else PICTURES:
            page = browser.open()
            wishes = QUICK.get(name, {}) if options.quick else {}
            make(page, name, wishes)
            page.close()


def make(page: ComfyPage, name: str, wishes: dict) -> None:
    """Run one workflow and write its pictures."""
    page.load(json.loads((EXAMPLES / f"{name}.json").read_text()), name)
    page.page.evaluate(SET_WIDGETS, wishes)
    page.page.evaluate("() => { window.testEvents = []; window.app.queuePrompt(0, 1); }")
    if name == WATCHED:
        page.page.wait_for_function(HAS_DONE, arg=WATCHED_AT, timeout=1_800_000)
        close_up(page, "ChunkGRPO_TrainLoRA", IMAGES / "monitor.png")
    page.page.wait_for_function(ENDED, timeout=1_800_000)
    event, data = page.page.evaluate("() => window.testEvents.at(-1)")
    if event != "execution_success":
        sys.exit(f"{name}: {event}: {json.dumps(data, indent=1)}")
    page.page.wait_for_load_state("networkidle")  # the previews of the last nodes
    picture = page.screenshot(IMAGES / f"{PICTURES[name] or name}.png", graph_only=True)
    with Image.open(picture) as full:
        full = full.convert("RGB")
    if PICTURES[name]:
        full.save(picture, optimize=True)
    else:
        picture.unlink()
    title, line, kind = CARDS[name]
    hue = list(CARDS).index(name) / len(CARDS)
    result = seen(page, kind, panel_only=True)
    thumbnail = card(title, (line, NOTHING_NEEDED), [full, result], hue)
    write_thumbnail(thumbnail, EXAMPLES / f"{name}.jpg")
    for kind, title in CLOSE_UPS.get(name, {}).items():
        close_up(page, kind, IMAGES / f"{title}.png")


def close_up(page: ComfyPage, kind: str, path: Path) -> None:
    """Write a picture of the first node of a kind alone."""
    seen(page, kind).save(path, optimize=True)


def seen(page: ComfyPage, kind: str, panel_only: bool = False) -> Image.Image:
    """Take a picture of the first node of a kind alone, or only of its panel if it has one."""
    page.page.evaluate(FOCUS, True)
    hidden = page.page.add_style_tag(content=HIDE_THE_REST)
    box = page.page.evaluate(SHOW_NODE, [kind, 1.0])
    page.page.wait_for_timeout(1200)
    if panel_only:
        box = page.page.evaluate(PANEL, kind) or box
    with Image.open(io.BytesIO(page.page.screenshot(clip=box))) as picture:
        found = picture.convert("RGB")
    hidden.evaluate("(style) => style.remove()")
    page.page.evaluate(FOCUS, False)
    return found


def write_thumbnail(picture: Image.Image, path: Path) -> None:
    """Write a small JPEG of a picture."""
    height = round(picture.height * THUMBNAIL_WIDTH / picture.width)
    small = picture.resize((THUMBNAIL_WIDTH, height), Image.Resampling.LANCZOS)
    for quality in range(90, 30, -5):
        small.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= THUMBNAIL_BYTES:
            return


if __name__ == "__main__":
    main()
