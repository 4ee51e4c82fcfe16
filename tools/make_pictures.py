"""Make every picture of the docs that comes from ComfyUI's page, and the examples' thumbnails.

    python tools/make_pictures.py

The examples of the tiny FLUX run as they are, in a real server and a real browser: under ten
minutes on two CPU cores. ``--quick`` trains two iterations, to see the layout only. Thumbnails of
the real models' examples come from ``model_examples.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tests.comfy.browser import ComfyBrowser, ComfyPage
from tests.comfy.server import ROOT, ComfyServer

EXAMPLES = ROOT / "example_workflows"
IMAGES = ROOT / "docs" / "images"
WINDOW = (2400, 1300)
THUMBNAIL_WIDTH, THUMBNAIL_BYTES = 1280, 200_000

PICTURES = {  # workflow -> picture of its graph after a run
    "01_quick_start_tiny_flux": "quick_start_graph",
    "02_temporal_dynamics": "temporal_dynamics_graph",
    "03_score_and_pick": "score_and_pick_graph",
    "04_use_the_lora": "use_the_lora_graph",
    "05_grpo_preset": "grpo_preset_graph",
}
SHORT = {"ChunkGRPO_TrainLoRA": {"iterations": 2, "group_size": 4}}
QUICK = dict.fromkeys(("01_quick_start_tiny_flux", "04_use_the_lora", "05_grpo_preset"), SHORT)
SET_WIDGETS = """(wishes) => {
  for (const node of window.app.graph.nodes)
    for (const [name, value] of Object.entries(wishes[node.type] ?? {}))
      node.widgets.find((widget) => widget.name === name).value = value;
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
    event, data = page.queue(seconds=1800)
    if event != "execution_success":
        sys.exit(f"{name}: {event}: {json.dumps(data, indent=1)}")
    page.page.wait_for_load_state("networkidle")  # the previews of the last nodes
    picture = page.screenshot(IMAGES / f"{PICTURES[name]}.png", graph_only=True)
    with Image.open(picture) as full:
        full = full.convert("RGB")
    full.save(picture, optimize=True)
    write_thumbnail(full, EXAMPLES / f"{name}.jpg")


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
