"""Was it worth it? Blind duels of Evaluate LoRA: through the API, and in a real page."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.runs.duels import read_duels

from .comparing import address, compared, duels_of
from .test_hostile_routes import ask

LOOK = """() => {
  const { ds } = window.app.canvas;
  const [node] = window.app.graph.nodes.filter((n) => n.type === "ChunkGRPO_EvaluateLoRA");
  for (const other of window.app.graph.nodes) if (other !== node) other.pos = [9000, 9000];
  ds.scale = 1;
  ds.offset = [400 - node.pos[0], 120 - node.pos[1]];
  window.app.canvas.setDirty(true, true);
}"""
ROOM = """async (width) => {
  const [node] = window.app.graph.nodes.filter((n) => n.type === "ChunkGRPO_EvaluateLoRA");
  node.setSize([width, 10]);
  node.setSize([width, node.computeSize()[1]]);  // as small as it may be
  window.app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 300));
  const grid = document.querySelector(".score-grid");
  let { top, bottom } = grid.getBoundingClientRect();
  for (let box = grid; box.closest(".chunk-grpo"); box = box.parentElement) {
    const clip = box.getBoundingClientRect();
    [top, bottom] = [Math.max(top, clip.top), Math.min(bottom, clip.bottom)];
  }
  return Math.max(0, bottom - top);
}"""
"""How much of the pairs can be seen in a node of some width, in pixels."""
COUNT = """(text) => [...document.querySelectorAll(".duel-panel .counts b, .duel-line .grow")].some(
  (element) => element.textContent.includes(text))"""
LOADED = """() => [...document.querySelectorAll(".duel-panel .cell.duel img")]
  .every((image) => image.complete && image.naturalWidth === 64)"""


def drawn_by(client, prompt):
    """Run a graph; where the duels lie that it drew."""
    (where,) = client.run(prompt).outputs["compare"]["chunk_grpo_duels"]
    return where


def test_without_a_page_the_routes_show_and_take_answers_and_tell_nothing_before(
    comfy, comfy_server
):
    prompt = compared(duels=4)
    run = comfy.run(prompt)
    (where,) = run.outputs["compare"]["chunk_grpo_duels"]
    assert where["run"] == "evaluation" and "text" not in run.outputs["compare"]
    folder = comfy_server.output / "chunk_grpo" / "evaluation" / "duels" / where["number"]
    drawn = read_duels(folder)
    blind = duels_of(comfy, where)
    assert blind["id"] == where["id"] and blind["answered"] == 0 and blind["result"] is None
    assert "lora" not in json.dumps(blind)
    assert {duel.prompt for duel in drawn} == {row["prompt"] for row in blind["duels"]}
    assert sum(duel.lora_is_left for duel in drawn) == 2
    for row in blind["duels"]:
        left, right = (
            ask(comfy_server, "GET", f"{address(where)}/{file}") for file in row["pictures"]
        )
        assert left[0] == right[0] == 200 and left[1] != right[1]
        with Image.open(io.BytesIO(left[1])) as picture:
            assert picture.size == (64, 64) and not picture.info
    assert comfy.post(address(where), {"duel": 1, "answer": 1})[0] == 200
    assert comfy.post(address(where), {"duel": 2, "answer": 0})[0] == 200
    assert duels_of(comfy, where)["answered"] == 2
    assert comfy.post(address(where), {"undo": True})[1]["answered"] == 1
    again = compared(duels=4)
    again["compare"]["inputs"]["noise_seed"] = prompt["compare"]["inputs"]["noise_seed"]
    again["compare"]["inputs"]["dark"] = True  # it runs again, and draws the same
    assert drawn_by(comfy, again) == where
    for_lora = "".join("1" if duel.lora_is_left else "2" for duel in drawn)
    status, done = comfy.post(address(where), {"answers": for_lora})
    assert (
        status == 200
        and done["result"]["lora"] == 4
        and "Of 4 blind duels" in done["result"]["text"]
    )
    assert [row["lora_is_left"] for row in done["duels"]] == [duel.lora_is_left for duel in drawn]
    said = CliRunner().invoke(app, ["duels", str(folder.parents[1]), "--result"])
    assert said.exit_code == 0 and " ".join(said.stdout.split()) == done["result"]["text"]


def test_hostile_answers_and_names_are_refused_and_change_nothing(comfy, comfy_server):
    where = drawn_by(comfy, compared(duels=2))
    for body in (
        b"", b"[]", b"[" * 5000, b"{}", b'{"undo": 1}', b'{"answers": 12}', b'{"answers": "1"}',
        b'{"answers": "9x"}', b'{"duel": 0, "answer": 1}', b'{"duel": 3, "answer": 1}',
        b'{"duel": "1", "answer": 1}', b'{"duel": 1, "answer": true}', b'{"duel": 1, "answer": ""}',
        b'{"duel": 1, "answer": 1, "more": 1}', b'{"a": "' + b"x" * 2**21 + b'"}',
    ):  # fmt: skip
        status, answer = ask(comfy_server, "POST", address(where), body)
        assert status == 400 and len(answer) < 700, (body[:80], status, answer)
    status, _ = ask(
        comfy_server, "POST", address(where), b'{"duel": 1, "answer": 1}', Origin="http://evil.test"
    )
    assert status == 403
    for path in (
        f"{address(where)}9", f"{address(where)}/duels.json", f"{address(where)}/..%2f01_left.png",
        f"{address(where)}/01.png", "/chunk_grpo/runs/../duels/001",
        "/chunk_grpo/runs/taste/duels/001", "/chunk_grpo/runs/evaluation/duels/%2e%2e",
        "/chunk_grpo/runs/nobody/duels/001",
    ):  # fmt: skip
        assert ask(comfy_server, "GET", path)[0] in (404, 405), path
    assert duels_of(comfy, where)["answered"] == 0


def until(page, text):
    page.page.wait_for_function(COUNT, arg=text, timeout=30_000)


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes-2"])
def test_duels_are_answered_by_keys_and_mouse_and_their_result_is_kept(
    vue, comfy, comfy_page, comfy_browser
):
    """Scores stay hidden until the end; a second page and a loaded workflow go on where it was."""
    comfy_page.use_vue_nodes(vue)
    try:
        comfy_page.load_api(compared(duels=6))
        comfy_page.load(
            {**comfy_page.serialize(), "id": f"3333333{int(vue)}-1111-4111-8111-111111111111"}
        )
        comfy_page.page.evaluate(LOOK)
        before = comfy_page.prompt()
        name, data = comfy_page.queue()
        assert name == "execution_success"
        (where,) = comfy.wait(data["prompt_id"], 10).outputs["compare"]["chunk_grpo_duels"]
        until(comfy_page, "0 of 6 answered")
        comfy_page.page.wait_for_function(LOADED)
        shown = comfy_page.page.locator(".duel-panel").inner_text()
        assert "LoRA" not in shown and "base" not in shown and "Gain" not in shown
        assert not comfy_page.page.locator(".score-grid").is_visible()
        addresses = comfy_page.page.locator(".duel-panel img").evaluate_all(
            "(all) => all.map((i) => i.src)"
        )
        assert [a.rsplit("/", 1)[1] for a in addresses[:2]] == ["01_left.png", "01_right.png"]
        comfy_page.page.locator(".cell.duel").nth(1).evaluate("(cell) => cell.click()")
        until(comfy_page, "1 of 6 answered")
        comfy_page.page.locator(".duel-panel button.full").evaluate("(full) => full.click()")
        keys = comfy_page.page.keyboard
        for key, count in (("1", 2), ("2", 3), ("z", 2), (" ", 3), ("0", 4)):
            keys.press(key)
            until(comfy_page, f"{count} of 6 answered")
        keys.press("Escape")
        second = comfy_browser.open()
        try:
            second.load(comfy_page.serialize())
            second.page.evaluate(LOOK)
            until(second, "4 of 6 answered")
            second.page.locator(".cell.duel").first.evaluate("(cell) => cell.click()")
            until(second, "5 of 6 answered")
            until(comfy_page, "5 of 6 answered")
            assert second.errors == []
        finally:
            second.close()
        comfy.post("/history", {"clear": True})  # as after a restart
        comfy_page.load(comfy_page.serialize())
        comfy_page.page.evaluate(LOOK)
        until(comfy_page, "5 of 6 answered")
        comfy_page.page.locator(".duel-panel button.later").evaluate("(later) => later.click()")
        until(comfy_page, "Blind duels: 5 of 6 answered")
        comfy_page.page.locator(".duel-line button").evaluate("(button) => button.click()")
        keys.press("ArrowLeft")
        until(comfy_page, "Of 6 blind duels")
        view = duels_of(comfy, where)
        assert [row["answer"] for row in view["duels"]] == [2, 1, 0, 0, 1, 1]
        assert comfy_page.page.locator(".duel-line .grow").inner_text() == view["result"]["text"]
        assert comfy_page.queue()[0] == "execution_success"  # the pairs again
        comfy_page.page.locator(".score-grid img").first.wait_for()
        rooms = [comfy_page.page.evaluate(ROOM, width) for width in (500, 320)]
        assert min(rooms) >= 60, "the pairs have no room below a long result"
        comfy_page.page.locator(".duel-line button").evaluate("(button) => button.click()")
        names = comfy_page.page.locator(".chunk-grpo-lightbox figcaption").all_inner_texts()
        wanted = ["LoRA", "base"] if view["duels"][0]["lora_is_left"] else ["base", "LoRA"]
        assert names == [wanted[0], f"{wanted[1]} · your choice"]
        keys.press("Escape")
        assert comfy_page.prompt() == before
    finally:
        comfy_page.use_vue_nodes(False)
    assert comfy_page.errors == []


SLOW_ANSWERS = """() => {
  const fetch = window.fetch;
  window.fetch = async (...asked) => {
    const answer = await fetch(...asked);
    if (asked[1]?.method === "POST") await new Promise((done) => setTimeout(done, 700));
    return answer;
  };
}"""


def test_a_key_counts_as_soon_as_the_next_pair_is_shown(comfy_browser):
    """The server tells all pages of an answer before the page that gave it has its own reply."""
    page = comfy_browser.open()
    try:
        page.load_api(compared(duels=3))
        page.page.evaluate(LOOK)
        assert page.queue()[0] == "execution_success"
        until(page, "0 of 3 answered")
        page.page.evaluate(SLOW_ANSWERS)
        page.page.locator(".duel-panel button.full").evaluate("(full) => full.click()")
        for count in (1, 2):
            page.page.keyboard.press("1")
            until(page, f"{count} of 3 answered")
        page.page.keyboard.press("1")
        until(page, "Of 3 blind duels")
    finally:
        page.close()
