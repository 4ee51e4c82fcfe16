"""The grids of pictures inside Score Images and Evaluate LoRA, in a real server and page."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image

from . import graphs
from .comparing import SEEDS, compared
from .graphs import node, shown_text

SCORE = "ChunkGRPO_ScoreImages"
CELLS = """([key, text]) => {
  const node = window.app.graph.getNodeById(key) ?? window.app.graph.getNodeById(Number(key));
  const grid = node.widgets.find((widget) => widget.name === "pictures").element;
  return [...grid.querySelectorAll(".cell")].map((cell) =>
    [Number(cell.dataset.number), cell.querySelector(text)?.textContent ?? null]);
}"""
LOOK = """() => {
  const { ds } = window.app.canvas;
  const grids = window.app.graph.nodes.filter((n) => n.widgets?.some((w) => w.name === "pictures"));
  ds.scale = 1;
  ds.offset = [400 - grids[0].pos[0], 200 - grids[0].pos[1]];
  window.app.canvas.setDirty(true, true);
}"""
ORDERS = "(select) => [...select.options].map((option) => option.value)"
LOADED = """() => [...document.querySelectorAll(".chunk-grpo-lightbox img")]
  .every((image) => image.complete && image.naturalWidth === 64)"""


def scored():
    """Six pictures, scored by one reward and by two together."""
    prompt = graphs.change(graphs.twin(graphs.PICK), "RandomNoise", noise_seed=next(SEEDS))
    prompt = graphs.change(prompt, "EmptySD3LatentImage", batch_size=6)
    prompt["blue"] = node("ChunkGRPO_LoadReward", name="target_colour", colour="#2060c0")
    weights = {f"weight_{number}": 1.0 for number in range(1, 5)}
    prompt["both"] = node(
        "ChunkGRPO_CombineRewards", reward_1=["11", 0], reward_2=["blue", 0], **weights
    )
    prompt["12"]["inputs"]["reward"] = ["both", 0]
    return prompt


def run(page, client, prompt):
    """Run a prompt in the page; return what its nodes showed."""
    page.load_api(prompt)
    page.page.evaluate(LOOK)
    name, data = page.queue()
    assert name == "execution_success", data
    return client.wait(data["prompt_id"], 10)


def cells(page, key, text=".score"):
    """(number, text) of each cell of a grid, in the order shown."""
    page.page.wait_for_function("() => document.querySelector('.score-grid .cell')", timeout=30_000)
    return page.page.evaluate(CELLS, [key, text])


def choose(page, label):
    page.page.locator(".chunk-grpo select").select_option(label)


def enlarge(page, place):
    """Click a cell, wherever the canvas has it."""
    page.page.locator(".score-grid .cell").nth(place).evaluate("(cell) => cell.click()")
    page.page.wait_for_function(LOADED, timeout=30_000)


def lightbox(page):
    """(place, titles, texts) of the enlarged picture; None when nothing is enlarged."""
    box = page.page.locator(".chunk-grpo-lightbox")
    if not box.count():
        return None
    place = box.locator(".bar .grow").inner_text()
    return place, box.locator("figcaption").all_inner_texts(), box.locator(".lines").inner_text()


@pytest.fixture
def own_errors(comfy_page):
    """Errors that the page's console shows for files of this pack."""
    found = []

    def listen(message):
        if message.type == "error" and "chunk-grpo" in str(message.location):
            found.append(message.text)

    comfy_page.page.on("console", listen)
    yield found
    comfy_page.page.remove_listener("console", listen)


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes-2"])
def test_the_grid_has_the_scores_of_the_table_in_the_order_chosen(
    vue, comfy, comfy_page, own_errors
):
    comfy_page.use_vue_nodes(vue)
    try:
        done = run(comfy_page, comfy, scored())
        rows = [line.split("\t") for line in shown_text(done, "12").splitlines()]
        table = {int(number): float(score) for number, score, _ in rows}
        shown = cells(comfy_page, "12")
        assert len(shown) == 6
        wanted = sorted(table.items(), key=lambda row: -row[1])
        assert [number for number, _ in shown] == [number for number, _ in wanted]
        for (_, text), (_, score) in zip(shown, wanted, strict=True):
            assert abs(float(text) - score) <= 0.0006 and len(text.partition(".")[2]) == 3
        rows = done.outputs["12"]["chunk_grpo_scores"]
        assert {r["number"]: round(r["score"], 4) for r in rows} == table
        keys = {
            "best first": ("score", -1),
            "worst first": ("score", 1),
            "by number": ("number", 1),
        }
        for part in ("tiny_world", "target_colour"):
            keys[f"{part}: largest first"] = (part, -1)
            keys[f"{part}: smallest first"] = (part, 1)
        assert keys.keys() <= set(comfy_page.page.locator(".chunk-grpo select").evaluate(ORDERS))
        for label, (key, sign) in keys.items():
            choose(comfy_page, label)
            value = {r["number"]: {**r, **r["parts"]}[key] for r in rows}
            expected = sorted(value, key=lambda number: (sign * value[number], number))
            assert [number for number, _ in cells(comfy_page, "12")] == expected, label
        assert cells(comfy_page, "12", ".by")[0][1].endswith(" target_colour")
        box = comfy_page.page.locator(".score-grid").bounding_box()
        assert box["height"] > 50
    finally:
        comfy_page.use_vue_nodes(False)
    assert comfy_page.errors == own_errors == []


def test_a_click_enlarges_and_keys_walk_and_close(comfy, comfy_page):
    run(comfy_page, comfy, scored())
    order = [number for number, _ in cells(comfy_page, "12")]
    prompt = comfy_page.prompt()
    enlarge(comfy_page, 1)
    place, titles, texts = lightbox(comfy_page)
    assert (place, titles) == ("2 of 6", [f"#{order[1]}"])
    (score,) = re.findall(r"^score (-?[\d.]+)$", texts, re.MULTILINE)  # one more digit
    assert abs(float(score) - float(dict(cells(comfy_page, "12"))[order[1]])) < 6e-4
    assert "two large green triangles on a black background" in texts
    assert "target_colour" in texts
    keys = comfy_page.page.keyboard
    for key, wanted in (("ArrowRight", 3), ("End", 6), ("ArrowRight", 6), ("ArrowLeft", 5)):
        keys.press(key)
        assert lightbox(comfy_page)[0] == f"{wanted} of 6"
    keys.press("Delete")  # ComfyUI would delete a chosen node
    keys.press("Escape")
    assert lightbox(comfy_page) is None
    focused = comfy_page.page.evaluate("() => document.activeElement.dataset.number")
    assert int(focused) == order[4]
    keys.press("ArrowLeft")
    keys.press("Enter")
    assert lightbox(comfy_page)[:2] == ("4 of 6", [f"#{order[3]}"])
    comfy_page.page.locator(".chunk-grpo-lightbox").dispatch_event("click")  # beside the picture
    assert lightbox(comfy_page) is None
    assert comfy_page.prompt() == prompt


def test_the_result_is_there_after_a_reload_and_in_a_second_page(comfy, comfy_page, comfy_browser):
    comfy_page.load_api(scored())
    saved = {**comfy_page.serialize(), "id": "11111111-1111-4111-8111-111111111111"}
    comfy_page.load(saved)
    comfy_page.page.evaluate(LOOK)
    name, data = comfy_page.queue()
    assert name == "execution_success"
    comfy.wait(data["prompt_id"], 10)  # the server tells of the end before it remembers the run
    before = cells(comfy_page, "12")
    comfy_page.load(saved)
    comfy_page.page.evaluate(LOOK)
    assert cells(comfy_page, "12") == before
    second = comfy_browser.open()
    try:
        second.load(saved)
        second.page.evaluate(LOOK)
        assert cells(second, "12") == before
        enlarge(second, 0)
        assert lightbox(second)[0] == "1 of 6"
        second.page.keyboard.press("Escape")
        second.load({**saved, "id": "22222222-2222-4222-8222-222222222222"})  # another workflow
        second.page.wait_for_timeout(1000)
        # Nothing of the first one; where runs before had no id, the same nodes may show theirs.
        assert second.page.evaluate(CELLS, ["12", ".score"]) != before
        assert second.errors == []
    finally:
        second.close()


def test_a_workflow_with_the_same_numbers_shows_its_own_grid(comfy, comfy_page):
    comfy_page.use_vue_nodes(True)  # some versions keep the elements of the workflow before
    try:
        for _ in range(2):
            run(comfy_page, comfy, scored())
            shown = cells(comfy_page, "12")
            comfy_page.page.wait_for_timeout(500)
            texts = comfy_page.page.locator(".score-grid .cell .score").all_text_contents()
            assert texts == [score for _, score in shown]
    finally:
        comfy_page.use_vue_nodes(False)


def test_the_grid_stays_out_of_prompts_and_saved_workflows(comfy, comfy_page):
    comfy_page.load(graphs.workflow(graphs.PICK), graphs.PICK)
    assert comfy_page.prompt() == graphs.for_server(graphs.twin(graphs.PICK), comfy.object_info())
    run(comfy_page, comfy, scored())
    cells(comfy_page, "12")
    prompt, saved = comfy_page.prompt(), comfy_page.serialize()
    assert sorted(prompt["12"]["inputs"]) == ["images", "prompt", "reward"]
    (entry,) = [entry for entry in saved["nodes"] if entry["type"] == SCORE]
    assert len(entry["widgets_values"]) == 1  # the prompt
    assert "chunk_grpo_scores" not in str(saved)
    assert "temp" not in str(entry)


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes-2"])
def test_pairs_have_the_gains_of_the_table_and_can_be_flipped(vue, comfy, comfy_page, own_errors):
    comfy_page.use_vue_nodes(vue)
    try:
        done = run(comfy_page, comfy, compared())
        _, conditions, _, prompts = shown_text(done, "compare").split("\n\n")
        assert conditions.startswith("4 prompts")
        numbers = re.findall(r"^- (\S+) \((\S+) to (\S+)\): ", prompts, re.MULTILINE)
        rows = done.outputs["compare"]["chunk_grpo_pairs"]
        assert [[round(r[k], 4) for k in ("gain", "base", "lora")] for r in rows] == [
            [float(x) for x in row] for row in numbers
        ]
        for label, key in {
            "largest gain first": lambda i: -rows[i]["gain"],
            "smallest gain first": lambda i: rows[i]["gain"],
            "base: best first": lambda i: -rows[i]["base"],
            "LoRA: worst first": lambda i: rows[i]["lora"],
            "by prompt number": lambda i: i,
        }.items():
            choose(comfy_page, label)
            order = [number for number, _ in cells(comfy_page, "compare")]
            assert order == sorted(range(4), key=lambda i: (key(i), i)), label
        summary = comfy_page.page.locator(".chunk-grpo .summary").inner_text()
        number = r"([+-]\d\.\d+)"
        lines = rf"gain {number}\n  - 95 % interval {number} to {number}"
        interval = re.search(lines, shown_text(done, "compare"))
        found = [float(x.replace("−", "-")) for x in re.findall(r"[+−]\d\.\d+", summary)]
        assert found == pytest.approx([float(x) for x in interval.groups()], abs=6e-4)
        wins = sum(row["gain"] > 0 for row in rows)
        assert f"better on {wins} of 4 prompts" in summary
        enlarge(comfy_page, 2)
        base, lora = (f"{name} {score:.4f}" for name, score in
                      zip(("base", "LoRA"), rows[2]["shown"], strict=True))  # fmt: skip
        assert lightbox(comfy_page)[:2] == ("3 of 4", [base, lora])
        keys = comfy_page.page.keyboard
        keys.down(" ")
        assert lightbox(comfy_page)[1] == [lora]
        keys.up(" ")
        assert lightbox(comfy_page)[1] == [base]
        keys.press("f")
        assert lightbox(comfy_page)[1] == [lora]
        keys.press("s")
        assert lightbox(comfy_page)[1] == [base, lora]
        keys.press("Escape")
        assert lightbox(comfy_page) is None
    finally:
        comfy_page.use_vue_nodes(False)
    assert comfy_page.errors == own_errors == []


def test_of_very_many_pictures_the_best_and_the_worst_are_shown(comfy, comfy_page):
    reward = node("ChunkGRPO_LoadReward", name="target_colour", colour="#ffffff")
    prompt = {"reward": reward, "score": node(SCORE, reward=["reward", 0], prompt="white")}
    for number in range(3):
        grey = node("EmptyImage", width=16, height=16, batch_size=100, color=0x404040 * number)
        prompt[f"grey {number}"] = grey
    for number in (1, 2):
        first = f"joined {number - 1}" if number > 1 else "grey 0"
        joined = {"image1": [first, 0], "image2": [f"grey {number}", 0]}
        prompt[f"joined {number}"] = node("ImageBatch", **joined)
    prompt["score"]["inputs"]["images"] = ["joined 2", 0]
    shown = run(comfy_page, comfy, prompt).outputs["score"]
    numbers = [row["number"] for row in shown["chunk_grpo_scores"]]
    # Best: the last hundred and 28 of the middle; worst: the first hundred and 28 of the middle.
    assert numbers == [*range(128), *range(172, 300)]
    assert len(cells(comfy_page, "score")) == 256
    summary = comfy_page.page.locator(".chunk-grpo .summary").inner_text()
    assert "300 pictures; the best and the worst, 256 of them" in summary


def test_the_files_are_the_pictures_without_the_workflow(comfy):
    prompt = graphs.upstream(scored(), "12")
    prompt["12"]["inputs"]["images"] = ["grey", 0]
    prompt["grey"] = node("EmptyImage", width=64, height=64, batch_size=1, color=0x336699)
    run = comfy.run(graphs.upstream(prompt, "12"))
    (row,) = run.outputs["12"]["chunk_grpo_scores"]
    assert row["picture"]["type"] == "temp"
    assert "images" not in run.outputs["12"]  # ComfyUI would show them a second time
    with Image.open(io.BytesIO(comfy.view(row["picture"]))) as picture:
        assert picture.convert("RGB").getpixel((5, 5)) == (0x33, 0x66, 0x99)
        assert "workflow" not in picture.info
        assert "prompt" not in picture.info


SMALL = """() => {
  const picture = { filename: "none.png", type: "temp" };
  const row = (number, gain) => ({
    number, gain, prompt: "a", parts: {}, base: 0.0021, lora: 0.0021 + gain,
    shown: [0.0021, 0.0021 + gain], pictures: [picture, picture],
  });
  const gain = { gain: 0.00043, low: -0.0001, high: 0.0009, wins: 1, prompts: 2, win_rate: 0.5 };
  window.app.graph.getNodeById(1).onExecuted({
    chunk_grpo_pairs: [row(1, 0.00043), row(2, null)], chunk_grpo_gain: [{ ...gain, pictures: 1 }],
  });
  window.app.graph.getNodeById(2).onExecuted({
    chunk_grpo_scores: [{ number: 1, prompt: "a", parts: {}, score: -0.00043, picture }],
    chunk_grpo_total: [1],
  });
}"""


def test_small_scores_keep_two_figures(comfy_page):
    """A reward such as follows_prompt gives a large model marks of thousandths."""
    comfy_page.load_api({"1": node("ChunkGRPO_EvaluateLoRA"), "2": node(SCORE)})
    comfy_page.page.evaluate(SMALL)
    assert cells(comfy_page, "1") == [[1, "+0.00043"], [2, "-"]]
    assert cells(comfy_page, "1", ".line .quiet")[0] == [1, "0.00210 → 0.00253"]
    said = comfy_page.page.locator(".chunk-grpo .summary").all_inner_texts()
    assert any("Gain +0.00043, 95 % interval −0.00010 to +0.00090" in text for text in said)
    assert any("mean -0.00043" in text for text in said)
    assert cells(comfy_page, "2") == [[1, "-0.00043"]]
