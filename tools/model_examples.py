"""Write the example workflows of real models: one graph, and what each model needs of its own.

    python tools/model_examples.py --only 10_flux1_dev_bf16

The page of a real ComfyUI makes them, as ``workflow_from_api.py`` does. No model is read: the
loaders find empty files of the right names, so the thumbnails show the graphs as they are opened.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from make_pictures import EXAMPLES, WINDOW, write_thumbnail
from PIL import Image
from real_models import MODELS, ModelExample, layout_of, prompt_of
from workflow_from_api import convert, write_json

from tools.comfyui.browser import ComfyBrowser, ComfyPage
from tools.comfyui.server import ComfyServer


def main() -> None:
    names = {model.name: model for model in MODELS}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=names, help="one model instead of all")
    options = parser.parse_args()
    with ComfyServer() as server:
        for file in {file for model in MODELS for file in model.files}:
            server.add_model(file.directory, file.name)
        with ComfyBrowser(server.url, *WINDOW) as browser:
            page = browser.open()
            for name in [options.only] if options.only else names:
                write(page, names[name])


def write(page: ComfyPage, model: ModelExample) -> None:
    """Write workflow, API form and thumbnail of one model."""
    workflow, twin = convert(page, prompt_of(model), layout_of(model), model.name)
    write_json(EXAMPLES / f"{model.name}.json", workflow)
    write_json(EXAMPLES / "api" / f"{model.name}.json", twin)
    picture = EXAMPLES / f"{model.name}.jpg"
    with Image.open(page.screenshot(picture.with_suffix(".png"), graph_only=True)) as full:
        write_thumbnail(full.convert("RGB"), picture)
    picture.with_suffix(".png").unlink()


if __name__ == "__main__":
    main()
