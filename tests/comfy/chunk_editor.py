"""What the browser tests of the chunk editor share: its panel in a page, and graphs with it."""

from __future__ import annotations

from tools.comfyui.server import PACK_NAME

from . import graphs

TYPE = "ChunkGRPO_PlanChunks"
KEY = "chunk_grpo_plan"
NODE = f"window.app.graph.nodes.find((n) => n.type === '{TYPE}')"
VALUE = f"(name) => {NODE}.widgets.find((w) => w.name === name).value"
LOOK = f"""([scale]) => {{
  const node = {NODE}, {{ ds }} = window.app.canvas;
  ds.scale = scale;
  [ds.offset[0], ds.offset[1]] = [200 / scale - node.pos[0], 150 / scale - node.pos[1]];
  window.app.canvas.setDirty(true, true);
}}"""
TYPED = f"""([name, text]) => {{
  const widget = {NODE}.widgets.find((w) => w.name === name);
  widget.value = text;
  widget.callback?.(text);
}}"""


def plan_graph(**inputs):
    """Plan Chunks without a curve, and a preview of its plot."""
    values = {"chunk_sizes": "2, 3, 4, 7", "weights": "uniform", "dark": False, **inputs}
    preview = graphs.node("PreviewImage", images=["8", 0 + 1])
    return {"8": graphs.node(TYPE, **values), "9": preview}


def curve_graph(**inputs):
    """The second example as far as its plan, made small."""
    prompt = graphs.small(graphs.twin(graphs.DYNAMICS))
    plan = graphs.find(prompt, TYPE)
    preview = next(
        key
        for key, entry in prompt.items()
        if entry["class_type"] == "PreviewImage" and entry["inputs"]["images"] == [plan, 1]
    )
    return graphs.change(graphs.upstream(prompt, preview), TYPE, **inputs)


class Editor:
    """The panel of the only Plan Chunks node of a page."""

    def __init__(self, page, vue=False):
        self.page, self.tab, self.vue = page, page.page, vue
        self.tab.on("console", self._listen)
        self.complaints = []
        page.use_vue_nodes(vue)

    def _listen(self, message):
        if message.type == "error" and PACK_NAME in message.location.get("url", ""):
            self.complaints.append(message.text)

    def open(self, prompt, scale=1.3):
        self.page.load_api(prompt)
        self.look(scale)
        return self

    def look(self, scale=1.3):
        self.tab.wait_for_selector(".chunk-editor svg", state="attached")
        self.tab.evaluate(LOOK, [scale])
        self.page.settle(".chunk-editor svg")
        self.settle()

    def settle(self):
        """Wait until the server has said what the text means."""
        self.tab.wait_for_selector('.chunk-editor[aria-busy="false"]', state="attached")

    def value(self, name="chunk_sizes"):
        return self.tab.evaluate(VALUE, name)

    def type(self, text, name="chunk_sizes"):
        self.tab.evaluate(TYPED, [name, text])

    def sizes(self):
        self.settle()
        return [
            int(text) for text in self.tab.locator(".chunk-editor text.size").all_text_contents()
        ]

    def weights(self):
        self.settle()
        texts = self.tab.locator(".chunk-editor text.weight").all_text_contents()
        return [text.removeprefix("w ") for text in texts]

    def says(self):
        self.settle()
        return self.tab.locator(".chunk-editor .says").inner_text()

    def has_curve(self):
        self.settle()
        return self.tab.locator(".chunk-editor .curve").count() == 1

    def boundary(self, index):
        return self.tab.locator(f'.chunk-editor [data-boundary="{index}"]')

    def point(self, edge):
        """Where an edge between steps lies on the screen (5.5: the middle of the sixth step)."""
        x, y, step = self.tab.evaluate("""() => {
          const area = (k) => document.querySelector(`.chunk-editor [data-chunk="${k}"] .area`);
          const steps = Number(document.querySelector(".chunk-editor text.size").textContent);
          const box = area(0).getBoundingClientRect();
          return [box.x, box.y + box.height / 2, box.width / steps];
        }""")
        return x + edge * step, y

    def drag(self, start, end, drop=True):
        self.settle()
        self.tab.mouse.move(*self.point(start))
        self.tab.mouse.down()
        self.tab.mouse.move(*self.point((start + end) / 2))
        self.tab.mouse.move(*self.point(end), steps=3)
        if drop:
            self.tab.mouse.up()

    def press(self, *keys):
        for key in keys:
            self.tab.keyboard.press(key)

    def run(self, comfy):
        """Run the open graph; return what the server answered for the plan.

        The graph must differ from that of the run before, or all of it is cached.
        """
        name, data = self.page.queue()
        assert name == "execution_success", data
        outputs = comfy.wait(data["prompt_id"], 10).outputs
        (shown,) = [shown[KEY][0] for shown in outputs.values() if KEY in shown]
        return shown
