"""Write the example workflows of real models: one graph, and what each model needs of its own.

    python tools/model_examples.py --only 10_flux1_dev_bf16

The page of a real ComfyUI makes them, as ``workflow_from_api.py`` does. No model is read: the
loaders find empty files of the right names, so the thumbnails show the graphs as they are opened,
under a title that tells the models apart.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import real_models
from make_pictures import EXAMPLES, WINDOW, write_thumbnail
from PIL import Image
from workflow_from_api import convert, write_json

from tools.card import card
from tools.comfyui.browser import ComfyBrowser, ComfyPage
from tools.comfyui.server import ComfyServer


def main() -> None:
    names = real_models.EXAMPLES
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=names, help="one example instead of all")
    options = parser.parse_args()
    with ComfyServer() as server:
        for file in {file for model, _, _ in names.values() for file in model.files}:
            server.add_model(file.directory, file.name)
        with ComfyBrowser(server.url, *WINDOW) as browser:
            page = browser.open()
            for name in [options.only] if options.only else names:
                write(page, name)


def write(page: ComfyPage, name: str) -> None:
    """Write workflow, API form and thumbnail of one example."""
    model, prompt, layout = real_models.EXAMPLES[name]
    workflow, twin = convert(page, prompt, layout, name)
    write_json(EXAMPLES / f"{name}.json", workflow)
    write_json(EXAMPLES / "api" / f"{name}.json", twin)
    picture = EXAMPLES / f"{name}.jpg"
    hue = list(real_models.EXAMPLES).index(name) / len(real_models.EXAMPLES)
    is_taste = any(e["class_type"] == "ChunkGRPO_FitTaste" for e in prompt.values())
    reward = "Train it on your own clicks" if is_taste else "Train it to follow your prompts"
    guided = f"cfg {model.cfg:g}" if model.cfg > 1 else "no cfg"
    steps = f"{model.steps} steps, {model.sampler or 'euler'}, {guided}"
    with Image.open(page.screenshot(picture.with_suffix(".png"), graph_only=True)) as full:
        write_thumbnail(card(model.title, (reward, steps), [full.convert("RGB")], hue), picture)
    picture.with_suffix(".png").unlink()


if __name__ == "__main__":
    main()
