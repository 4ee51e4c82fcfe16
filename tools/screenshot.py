"""Take a picture of a workflow in ComfyUI's page, for the docs and as example thumbnail.

python tools/screenshot.py example_workflows/01_name.json example_workflows/01_name.jpg --run
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tools.comfyui.browser import ComfyBrowser
from tools.comfyui.server import ComfyServer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workflow", type=Path, help="UI-format JSON")
    parser.add_argument("picture", type=Path, help="file to write: .jpg or .png")
    parser.add_argument("--run", action="store_true", help="run it before the picture is taken")
    parser.add_argument("--window", action="store_true", help="with the bars around the graph")
    parser.add_argument("--vue", action="store_true", help='draw with the "Nodes 2.0" renderer')
    parser.add_argument("--size", default="1600x1000", help="of the window, default %(default)s")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with ComfyServer() as server, ComfyBrowser(server.url, width, height) as browser:
        page = browser.open()
        page.use_vue_nodes(options.vue)
        page.load(json.loads(options.workflow.read_text()), options.workflow.stem)
        if options.run:
            name, data = page.queue(seconds=1800)
            if name != "execution_success":
                sys.exit(f"{name}: {json.dumps(data, indent=1)}")
        page.screenshot(options.picture, graph_only=not options.window)


if __name__ == "__main__":
    main()
