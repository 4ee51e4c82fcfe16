"""Help pages in the real page: the info button opens them, with their picture."""

import io
import urllib.request

from PIL import Image
from schemas import node_schemas

SHOW_HELP = """async (type) => {
  const { app, LiteGraph } = window;
  app.graph.clear();
  const node = LiteGraph.createNode(type);
  node.pos = [600, 300];
  app.graph.add(node);
  app.canvas.deselectAll();
  app.canvas.selectNode(node);
}"""
PICTURE = """(name) => {
  const of = (image) => new URL(image.src).pathname.split("/").pop();
  const image = [...document.images].find((image) => of(image) === `${name}.jpg`);
  if (!image?.complete || !image.naturalWidth) return null;
  const { width, height } = image.getBoundingClientRect();
  return { path: new URL(image.src).pathname, alt: image.alt, width, height };
}"""


def test_every_node_can_be_helped_with_a_picture_that_the_page_shows(comfy_page):
    page, shown = comfy_page.page, {}
    for name in node_schemas():
        page.evaluate(SHOW_HELP, name)
        button = page.locator('[data-testid="info-button"]').first
        button.wait_for(state="attached")
        button.evaluate("(button) => button.click()")
        shown[name] = page.wait_for_function(PICTURE, arg=name).json_value()
    for name, picture in shown.items():
        assert picture["path"].endswith(f"/docs/images/{name}.jpg")
        assert picture["width"] > 200 and picture["height"] > 50
        assert picture["alt"]


def test_the_server_gives_the_page_and_the_picture_of_every_node(comfy_server):
    for name in node_schemas():
        base = f"{comfy_server.url}/extensions/chunk-grpo/docs"
        with urllib.request.urlopen(f"{base}/{name}.md", timeout=30) as answer:
            assert f"(images/{name}.jpg)" in answer.read().decode()
        with urllib.request.urlopen(f"{base}/images/{name}.jpg", timeout=30) as answer:
            assert Image.open(io.BytesIO(answer.read())).format == "JPEG"


def test_the_server_tells_the_names_and_tooltips_that_the_contracts_read_from_the_source(comfy):
    info = comfy.object_info()
    schemas = node_schemas()
    assert sorted(schemas) == sorted(name for name in info if name.startswith("ChunkGRPO_"))
    for name, schema in schemas.items():
        inputs = {
            key: spec[1].get("tooltip")
            for kind in ("required", "optional")
            for key, spec in info[name]["input"].get(kind, {}).items()
        }
        outputs = dict(
            zip(info[name]["output_name"], info[name]["output_tooltips"] or (), strict=True)
        )
        assert sorted(inputs) == sorted(s.name for s in schema.inputs)
        assert list(outputs) == [s.name for s in schema.outputs]
        assert [key for key, tooltip in (inputs | outputs).items() if not tooltip] == []
