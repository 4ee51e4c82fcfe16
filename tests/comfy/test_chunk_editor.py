"""The chunk editor in the page: pointer and keys write the text that the server reads."""

import json
import random

import pytest

from chunk_grpo_core.chunks import ChunkPlan, chunk_weights, parse_weights
from chunk_grpo_core.dynamics import DynamicsCurve
from chunk_grpo_core.planners import needs_curve, read_plan

from . import graphs
from .server import PACK_NAME

TYPE = "ChunkGRPO_PlanChunks"
KEY = "chunk_grpo_plan"
pytestmark = pytest.mark.browser
MODULE = f"/extensions/{PACK_NAME}/js/lib/chunk_plan.js"
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
        self.tab.wait_for_timeout(500)

    def value(self, name="chunk_sizes"):
        return self.tab.evaluate(VALUE, name)

    def type(self, text, name="chunk_sizes"):
        self.tab.evaluate(TYPED, [name, text])

    def sizes(self):
        return [
            int(text) for text in self.tab.locator(".chunk-editor text.size").all_text_contents()
        ]

    def weights(self):
        texts = self.tab.locator(".chunk-editor text.weight").all_text_contents()
        return [text.removeprefix("w ") for text in texts]

    def says(self):
        return self.tab.locator(".chunk-editor .says").inner_text()

    def has_curve(self):
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


@pytest.fixture(scope="module")
def page(comfy_browser):
    """Give one page to all tests: it takes seconds to open."""
    page = comfy_browser.open()
    yield page
    page.close()


@pytest.fixture
def editor(page):
    """Give the editor in the classic canvas; afterwards nothing may have complained."""
    yield from editor_of(page, False)


@pytest.fixture(params=[False, True], ids=["classic", "nodes_2"])
def both(request, page):
    """Give the editor in one renderer, then in the other."""
    yield from editor_of(page, request.param)


def editor_of(page, vue):
    page.errors.clear()
    editor = Editor(page, vue)
    yield editor
    page.page.remove_listener("console", editor._listen)
    assert editor.complaints == [] == page.errors


# Pointer


def test_a_dragged_boundary_changes_the_text_and_the_plan_of_the_next_run(both, comfy):
    both.open(plan_graph(dark=both.vue))
    both.drag(5, 7.2)
    assert both.value() == "2, 5, 2, 7"
    assert both.sizes() == [2, 5, 2, 7]
    assert both.run(comfy)["sizes"] == [2, 5, 2, 7]


@pytest.mark.parametrize("scale", [0.6, 2.0])
def test_a_drag_hits_the_same_step_at_every_zoom(scale, editor):
    editor.open(plan_graph(), scale)
    editor.drag(9, 12)
    assert editor.value() == "2, 3, 7, 4"


def test_a_chunk_keeps_one_step_however_far_the_drag_goes(editor):
    editor.open(plan_graph())
    editor.drag(5, 16)
    assert editor.value() == "2, 6, 1, 7"
    editor.drag(8, 0)
    assert editor.value() == "2, 1, 6, 7"


def test_escape_drops_a_drag(editor):
    editor.open(plan_graph())
    editor.drag(5, 8, drop=False)
    assert editor.value() == "2, 6, 1, 7"
    editor.press("Escape")
    assert editor.value() == "2, 3, 4, 7"
    editor.tab.mouse.move(*editor.point(3))
    editor.tab.mouse.up()
    assert editor.value() == "2, 3, 4, 7"


def test_a_double_click_splits_a_chunk_there_and_merges_at_a_boundary(both):
    both.open(plan_graph())
    both.tab.mouse.dblclick(*both.point(11.9))
    assert both.value() == "2, 3, 4, 3, 4"
    both.tab.mouse.dblclick(*both.point(2))
    assert both.value() == "5, 4, 3, 4"


def test_the_node_stays_where_it_is_while_a_boundary_moves(both):
    both.open(plan_graph())
    place = f"() => [...{NODE}.pos, ...window.app.canvas.ds.offset]"
    before = both.tab.evaluate(place)
    both.drag(9, 6)
    assert both.value() == "2, 3, 1, 10"
    assert both.tab.evaluate(place) == before


# Keys


def test_keys_move_split_and_merge(both, comfy):
    both.open(plan_graph(dark=both.vue))
    both.boundary(1).focus()
    both.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert both.value() == "2, 4, 3, 7"
    assert both.boundary(1).get_attribute("aria-valuenow") == "6"
    assert both.boundary(1).get_attribute("role") == "slider"
    both.press("End")
    assert both.value() == "2, 6, 1, 7"
    both.press("Home")
    assert both.value() == "2, 1, 6, 7"
    both.press("s")
    assert both.value() == "2, 1, 3, 3, 7"
    both.press("Delete")
    assert both.value() == "2, 1, 6, 7"
    assert both.run(comfy)["sizes"] == [2, 1, 6, 7]


def test_every_part_can_be_reached_by_tab_and_says_what_it_is(editor):
    editor.open(plan_graph(weights="0.4, 0.35, 0.2, 0.05"))
    editor.tab.locator(".chunk-editor button", has_text="?").focus()
    names = []
    for _ in range(4):
        editor.press("Tab")
        names.append(editor.tab.evaluate("() => document.activeElement.getAttribute('aria-label')"))
    assert names[0] == "chunk 1 of 4: steps 1 to 2, weight 0.4"
    assert names[1:] == [f"boundary between chunks {k} and {k + 1}" for k in (1, 2, 3)]


def test_keys_in_the_panel_leave_the_node_alone(both):
    both.open(plan_graph())
    both.tab.evaluate(f"() => window.app.canvas.selectNode({NODE})")
    place = f"() => [...{NODE}.pos]"
    before = both.tab.evaluate(place)
    both.boundary(0).focus()
    both.press("Delete")
    assert both.value() == "5, 4, 7"
    both.press("ArrowRight", "Backspace")
    assert both.value() == "5, 11"
    assert both.tab.evaluate(place) == before


def test_comfyui_undoes_an_edit(editor):
    editor.open(plan_graph())
    editor.drag(5, 7)
    editor.tab.wait_for_timeout(300)
    assert editor.value() == "2, 5, 2, 7"
    editor.press("Control+z")
    editor.tab.wait_for_function(f"() => ({VALUE})('chunk_sizes') === '2, 3, 4, 7'")
    editor.tab.wait_for_timeout(300)
    assert editor.sizes() == [2, 3, 4, 7]


def test_the_buttons_do_what_the_keys_do(editor):
    editor.open(plan_graph())
    split, merge = (
        editor.tab.locator(".chunk-editor button", has_text=t) for t in ("Split", "Merge")
    )
    assert split.is_disabled() and merge.is_disabled()
    editor.tab.mouse.click(*editor.point(7))
    split.click()
    assert editor.value() == "2, 3, 2, 2, 7"
    merge.click()
    assert editor.value() == "2, 3, 4, 7"


# Weights


def test_a_split_repeats_the_weight_and_a_merge_takes_the_mean(editor, comfy):
    editor.open(plan_graph(weights="0.4, 0.35, 0.2, 0.05"))
    assert editor.weights() == ["0.4", "0.35", "0.2", "0.05"]
    editor.tab.mouse.dblclick(*editor.point(3))
    assert editor.value("weights") == "0.4, 0.35, 0.35, 0.2, 0.05"
    editor.boundary(2).focus()
    editor.press("Delete")
    assert editor.value("weights") == "0.4, 0.35, 0.275, 0.05"
    shown = editor.run(comfy)
    assert shown["weights"] == [0.4, 0.35, 0.275, 0.05]
    assert shown["sizes"] == json.loads(f"[{editor.value()}]")


@pytest.mark.parametrize("text", ["uniform", "1, 2"])
def test_other_weights_stay_as_they_are(text, editor):
    editor.open(plan_graph(weights=text))
    editor.tab.mouse.dblclick(*editor.point(3))
    assert editor.value() == "2, 1, 2, 4, 7"
    assert editor.value("weights") == text


# Text


def test_typing_redraws_at_once(editor):
    editor.open(plan_graph())
    editor.type("5, 5")
    assert editor.sizes() == [5, 5]


def test_typing_in_nodes_2_redraws_at_once(page):
    editor = Editor(page, vue=True).open(plan_graph())
    editor.tab.get_by_label("chunk_sizes", exact=True).fill("5, 5")
    editor.tab.wait_for_timeout(300)
    assert editor.value() == "5, 5"
    assert editor.sizes() == [5, 5]


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("two", ['"two"', "2, 3, 4, 7", "adaptive"]),
        ("2, 0", ["2, 0", "1 or more"]),
        ("", ["whole"]),
        ("cut x", ['"cut x"', "cut 4 2"]),
    ],
)
def test_bad_text_is_explained_and_harms_nothing(text, wrong, editor):
    editor.open(plan_graph())
    editor.type(text)
    assert [word for word in wrong if word not in editor.says()] == []
    assert editor.sizes() == []
    assert editor.value() == text
    editor.type("4, 4")
    assert editor.sizes() == [4, 4]
    assert "double-click" in editor.says()


def test_words_that_need_a_curve_say_so(editor):
    editor.open(plan_graph())
    for text in ("step", "size 4", "cut 4"):
        editor.type(text)
        assert "run the graph" in editor.says()


# The curve


def test_the_curve_comes_with_a_run_and_words_are_shown_resolved(editor, comfy):
    editor.open(curve_graph(chunk_sizes="cut 3", weights="curve"))
    assert not editor.has_curve()
    shown = editor.run(comfy)
    assert editor.has_curve()
    assert editor.sizes() == shown["sizes"]
    assert editor.weights() == [f"{weight:.2f}" for weight in shown["weights"]]
    steps = shown["steps"]
    assert len(shown["curve"]["mean"]) == steps + 1
    editor.type("whole")
    assert editor.sizes() == [steps]
    editor.type("size 6")
    assert editor.sizes() == [6] * (steps // 6) + [steps % 6] * (steps % 6 > 0)
    editor.type("cut 5")
    assert "run the graph" in editor.says() and editor.has_curve()
    editor.type("cut 3")
    edge = shown["sizes"][0]
    editor.drag(edge, edge + 1)
    moved = [edge + 1, shown["sizes"][1] - 1, shown["sizes"][2]]
    assert editor.value() == ", ".join(map(str, moved))
    editor.type("2, 2")
    assert f"{steps} trainable" in editor.says()
    assert not editor.has_curve()


def test_a_reloaded_page_and_a_second_one_show_the_last_curve(comfy_browser, comfy_page, comfy):
    editor = Editor(comfy_page).open(curve_graph())
    editor.run(comfy)
    saved = comfy_page.serialize()
    assert "mean" not in json.dumps(saved)
    line = ".chunk-editor .curve polyline"
    points = editor.tab.locator(line).get_attribute("points")
    assert len(points.split()) == 17
    editor.tab.reload(wait_until="domcontentloaded")
    editor.tab.wait_for_selector(".chunk-editor", state="attached", timeout=60_000)
    editor.look()  # the page opens what it showed before
    editor.tab.wait_for_selector(line)
    assert editor.tab.locator(line).get_attribute("points") == points
    second = comfy_browser.open()
    try:
        second.load(saved)
        second.page.wait_for_selector(line)
        assert second.errors == []
    finally:
        second.close()


def test_another_workflow_does_not_get_the_curve(editor, comfy):
    editor.open(curve_graph(chunk_sizes="8, 8"))
    editor.run(comfy)
    editor.open(plan_graph())
    editor.tab.wait_for_timeout(700)
    assert not editor.has_curve()


def run_of(workflow, nodes, output):
    extra = {"extra_pnginfo": {"workflow": {"id": workflow}}} if workflow else {}
    types = {key: {"class_type": kind} for key, kind in nodes.items()}
    return {"prompt": [0, "x", types, extra, []], "outputs": {"8": output}}


NO_ID = "00000000-0000-0000-0000-000000000000"
OURS = {"8": TYPE, "9": "PreviewImage"}


@pytest.mark.parametrize(
    "runs, found",
    [
        ([("a", {"8": TYPE}, "new"), ("a", {"8": TYPE}, "old")], "new"),
        ([("b", OURS, "theirs"), ("a", {"8": TYPE}, "ours")], "ours"),
        ([("a", {"8": "Other"}, "other")], None),
        ([(None, OURS, "through the API")], "through the API"),
        ([(None, {"8": TYPE, "9": "SaveImage"}, "another graph")], None),
        ([(NO_ID, {"8": TYPE, "7": TYPE}, "another file"), (NO_ID, OURS, "this file")], "this file"),
        ([], None),
    ],
)
def test_the_history_is_searched_for_the_newest_run_of_this_node(runs, found, page):
    result = page.page.evaluate(
        f"""async ([runs, type, open]) => {{
          const {{ newestOutput }} = await import("/extensions/{PACK_NAME}/js/lib/history.js");
          return newestOutput(runs, "8", type, "a", (id) => open[id]);
        }}""",
        [[run_of(*run) for run in runs], TYPE, OURS],
    )
    assert result == found


# What is saved


def test_neither_prompt_nor_workflow_holds_anything_of_the_editor(both):
    both.open(plan_graph())
    entry = both.page.prompt()["8"]
    assert sorted(entry["inputs"]) == ["chunk_sizes", "dark", "weights"]
    saved = both.page.serialize()
    (node,) = [node for node in saved["nodes"] if node["type"] == TYPE]
    assert node["widgets_values"] == ["2, 3, 4, 7", "uniform", False]
    assert "chunk_editor" not in json.dumps(saved)
    both.drag(5, 6)
    again = both.page.serialize()
    (after,) = [node for node in again["nodes"] if node["type"] == TYPE]
    assert after["widgets_values"] == ["2, 4, 3, 7", "uniform", False]
    assert after["properties"] == node["properties"]


def test_sizes_through_a_link_are_shown_but_not_edited(editor, comfy):
    prompt = plan_graph(chunk_sizes=["7", 0])
    prompt["7"] = graphs.node("PrimitiveString", value="3, 3")
    editor.open(prompt)
    assert "link" in editor.says()
    editor.run(comfy)
    assert editor.sizes() == [3, 3]
    editor.drag(3, 4)
    assert editor.sizes() == [3, 3]


# The page reads text as the library does

CURVE = DynamicsCurve(
    mean=tuple(0.9 - 0.1 * step + 0.008 * step * step for step in range(13)),
    std=(0.0,) * 13,
    prompts=1,
    samples=2,
    sigmas=tuple(1.0 - step / 13 for step in range(14)),
    rule="flow",
    eta=0.7,
    model="m",
)
SIZES_BY_HAND = (
    "2, 3, 4, 3", "[2,3,4,3]", "(2;3 4\t3)", " 2  3 4 3 ", "2,3,4,3,", ",12", "12", "0, 12", "13", "-1, 13",
    "+12", "1.0, 11", "1_2", "１２", "٣, ٩", "²", "step", "STEP", "step 2", "whole", "[whole]", "whole,", "size 4",
    "size,5", "size 0", "size 12", "size 13", "size", "size 4 4", "size x", "", " ", "[]", "two", "cut 4", "cut 4 2",
    "cut 0", "cut 13", "cut 4 4", "cut", "cut 4 2 1", "cut;4", "[cut 4]", "CUT,4", "cut x", "adaptive",
    "adaptive 2 4", "adaptive 4 2", "adaptive 2", "adaptive,2,4", "adaptive 13 14", "adaptive 0 4", "\x1c12\x85",
    "\ufeff12", "6\u30006", "cut\xa04", "size\xa04",
)  # fmt: skip
WEIGHTS_BY_HAND = (
    "uniform", "Uniform ", "[uniform]", "uniform 1", "curve", "curve 1", "softmax", "softmax 0.5", "softmax .5",
    "softmax 5.", "softmax 0", "softmax -1", "softmax x", "softmax 1e3", "softmax ٢", "1, 2, 3", "1 2 3", "1, 2",
    "0, 0, 0", "1, 0, 0", "1, -1, 1", "-0, 1, 1", "1e-3, .5, 5.", "1_0, 2, 3", "1__0, 2, 3", "_1, 2, 3",
    "nan, 1, 1", "inf, 1, 1", "Infinity 1 1", "-inf 1 1", "infi 1 1", "0x1, 1, 1", "", "1, 2, x", "٣, 1, 1", "1,2,3,",
    "1e, 2, 3", "e1, 2, 3", "., 1, 1", "+.5e+2, 1, 1",
)  # fmt: skip


def made_up(pieces, count, seed):
    draw = random.Random(seed)
    return ["".join(draw.choices(pieces, k=draw.randint(1, 7))) for _ in range(count)]


def library_sizes(text, steps):
    try:
        return list(read_plan(text, steps, CURVE).sizes)
    except ValueError:
        return "wrong"


def test_the_page_reads_sizes_as_the_library_does(page):
    pieces = [
        "2",
        "3",
        "12",
        "0",
        "7",
        ",",
        " ",
        ";",
        ", ",
        "size ",
        "cut ",
        "adaptive ",
        "step",
        "[",
        "]",
        "x",
    ]
    texts = [*SIZES_BY_HAND, *made_up(pieces, 3000, 1)]
    read = page.page.evaluate(
        f"""async (cases) => {{
          const {{ readSizes }} = await import("{MODULE}");
          return cases.map(([text, ran]) => readSizes(text, 12, ran));
        }}""",
        [[text, [12] if needs_curve(text) else None] for text in texts],
    )
    different = []
    for text, answer in zip(texts, read, strict=True):
        ours = library_sizes(text, 12)
        theirs = "wrong" if answer["problem"] else answer["sizes"]
        if needs_curve(text) and ours != "wrong":
            ours = [12]  # the page takes what the server made of it
        if ours != theirs:
            different.append((text, ours, answer))
    assert different == []
    right = [text for text in texts if library_sizes(text, 12) != "wrong"]
    assert 20 < len(right) < len(texts) - 20


def library_weights(text, plan):
    try:
        return parse_weights(text, plan, CURVE).weights
    except ValueError:
        return "wrong"


def test_the_page_reads_weights_as_the_library_does(page):
    plan = ChunkPlan((2, 4, 6))
    pieces = [
        "1",
        "0",
        ".5",
        "0.25",
        ",",
        " ",
        ", ",
        "e1",
        "-",
        "_",
        "softmax ",
        "curve",
        "uniform",
        "inf",
    ]
    texts = [*WEIGHTS_BY_HAND, *made_up(pieces, 3000, 2)]
    read = page.page.evaluate(
        f"""async ([texts, curve]) => {{
          const {{ readWeights }} = await import("{MODULE}");
          const shown = ({{ problem, weights }}) => [problem, weights?.map(String) ?? null];
          return texts.map((text) => shown(readWeights(text, [2, 4, 6], curve)));
        }}""",
        [texts, CURVE.to_json()],
    )
    different = []
    for text, (problem, weights) in zip(texts, read, strict=True):
        ours = library_weights(text, plan)
        theirs = "wrong" if problem else weights and tuple(map(float, weights))
        same = theirs == ours
        if isinstance(ours, tuple) and isinstance(theirs, tuple):
            same = theirs == pytest.approx(ours, rel=1e-12)
        if not same:
            different.append((text, ours, theirs))
    assert different == []
    assert chunk_weights(plan, CURVE).weights == library_weights("curve", plan)


def test_edits_of_a_plan_keep_its_steps(page):
    results = page.page.evaluate(f"""async () => {{
      const p = await import("{MODULE}");
      return [
        p.moveBoundary([2, 3, 4, 7], 1, 6.6), p.moveBoundary([2, 3], 0, -9), p.moveBoundary([2, 3], 0, 9),
        p.splitChunk([2, 7], 1), p.splitChunk([2, 7], 1, 3.2), p.splitChunk([2, 7], 1, 99), p.splitChunk([1], 0),
        p.mergeChunks([2, 3, 4], 1), p.mergeChunks([2, 3], 1),
        p.weightsAfterSplit("0.40, 1", 2, 0), p.weightsAfterSplit("curve", 2, 0), p.weightsAfterSplit("1, 2, 3", 2, 0),
        p.weightsAfterMerge("0.1, 0.25, 3", 3, 0), p.weightsAfterMerge("1, 2.00005, 1", 3, 1),
        p.weightsAfterMerge("softmax 0.5", 2, 0),
      ];
    }}""")
    assert results == [
        [2, 5, 2, 7], [1, 4], [4, 1],
        [2, 4, 3], [2, 1, 6], [2, 6, 1], None,
        [2, 7], None,
        "0.40, 0.40, 1", "curve", "1, 2, 3",
        "0.175, 3", "1, 1.5", "softmax 0.5",
    ]  # fmt: skip


def test_the_server_tells_the_page_the_plan_without_a_curve(comfy):
    run = comfy.run(plan_graph(chunk_sizes="2, 2", weights="1, 3"))
    (shown,) = run.outputs["8"][KEY]
    assert shown == {
        "written": {"chunk_sizes": "2, 2", "weights": "1, 3"},
        "sizes": [2, 2],
        "weights": [1.0, 3.0],
        "steps": 4,
        "curve": None,
    }
