"""The panel of Pick Pictures in a real page: by mouse and keys, on both canvases, in two pages."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
import time

import pytest

from chunk_grpo_core.rewards.taste.events import counting
from tools.comfyui.server import ComfyServer

from .client import ComfyClient
from .picking import act, picking, taste_of, view

NAMES = itertools.count(1)
LOOK = """() => {
  const { ds } = window.app.canvas;
  const [picker] = window.app.graph.nodes.filter((n) => n.type === "ChunkGRPO_PickPictures");
  for (const other of window.app.graph.nodes) if (other !== picker) other.pos = [9000, 9000];
  ds.scale = 1;
  ds.offset = [400 - picker.pos[0], 120 - picker.pos[1]];
  window.app.canvas.setDirty(true, true);
}"""


CUT_OFF = """() => [...document.querySelectorAll(".pick-panel :is(.counts, .keys, button)")]
  .filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.textContent)"""
ROWS = """() => new Set([...document.querySelectorAll(".pick-panel .row.top button")]
  .map((one) => Math.round(one.getBoundingClientRect().top / 10))).size"""


@pytest.fixture
def name():
    """Give the name of a taste that nobody has used."""
    return f"panel {next(NAMES)}"


def open_picker(browser, prompt):
    page = browser.open()
    page.load_api(prompt)
    page.page.evaluate(LOOK)
    return page


def panel(page):
    """The panel that is on top: over the whole page, or in the node."""
    large = page.page.locator(".chunk-grpo-picker .pick-panel")
    return large if large.count() else page.page.locator(".pick-panel")


def way(page, which):
    panel(page).locator(f".way.{which}").evaluate("(tab) => tab.click()")


def until(page, count):
    """Wait until the page has heard of so many clicks."""
    page.page.wait_for_function(
        "(count) => [...document.querySelectorAll('.pick-panel .counts b')].some("
        "(b) => b.textContent === `${count} clicks`)",
        arg=count, timeout=30_000,
    )  # fmt: skip


def press(page, key, count):
    page.page.keyboard.press(key)
    until(page, count)


def marks(page):
    """What the pictures in the panel show: liked, rejected or nothing."""
    names = panel(page).locator(".cell").evaluate_all("(cells) => cells.map((c) => c.className)")
    words = [set(name.split()) & {"liked", "rejected"} for name in names]
    return ["".join(word) for word in words]


@pytest.fixture
def own_errors(comfy_page):
    found = []

    def listen(message):
        if message.type in ("error", "warning") and "chunk-grpo" in str(message.location):
            found.append(message.text)

    comfy_page.page.on("console", listen)
    yield found
    comfy_page.page.remove_listener("console", listen)


@pytest.mark.slow
@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes-2"])
def test_forty_pictures_are_picked_by_mouse_and_keys(
    vue, name, comfy, comfy_page, comfy_browser, comfy_server, own_errors
):
    """With undo, a reload of the workflow and a second page that sees and says the same."""
    colours = [0x050505 * n for n in range(1, 41)]
    prompt = picking(name, colours, prompt="x")
    comfy_page.use_vue_nodes(vue)
    try:
        comfy_page.load_api(prompt)
        comfy_page.page.evaluate(LOOK)
        before = comfy_page.prompt()
        assert comfy_page.queue()[0] == "execution_success"
        until(comfy_page, 0)
        cells = panel(comfy_page).locator(".cell")
        cells.nth(39).wait_for(timeout=30_000)
        assert cells.count() == 40
        for place in range(3):  # by mouse, in the node
            cells.nth(place).evaluate("(cell) => cell.click()")
            until(comfy_page, place + 1)
        cells.nth(3).locator("button.cross").evaluate("(cross) => cross.click()")
        until(comfy_page, 4)
        panel(comfy_page).locator("button.full").evaluate("(full) => full.click()")
        keys = comfy_page.page.keyboard
        keys.press("Home")
        for _ in range(4):
            keys.press("ArrowRight")
        for count in range(5, 20):  # by keys, over the whole page
            press(comfy_page, "x" if count % 3 else " ", count)
            keys.press("ArrowRight")
        for _ in range(20):
            keys.press("Shift+ArrowRight")
        press(comfy_page, " ", 40)  # 21 at once: from picture 20 to the last
        press(comfy_page, "z", 19)
        press(comfy_page, " ", 40)
        liked = [n for n in range(40) if n < 3 or n > 18 or (n > 3 and (n + 1) % 3 == 0)]
        wanted = ["liked" if n in liked else "rejected" for n in range(40)]
        assert marks(comfy_page) == wanted
        keys.press("Escape")  # nothing is selected any more
        keys.press("Escape")  # back into the node
        assert comfy_page.page.locator(".chunk-grpo-picker").count() == 0
        assert marks(comfy_page) == wanted
        second = open_picker(comfy_browser, prompt)
        try:
            until(second, 40)
            assert marks(second) == wanted
            way(second, "best")
            panel(second).locator(".cell").nth(7).evaluate("(cell) => cell.click()")
            until(second, 41)
            until(comfy_page, 41)  # the first page hears of it
            assert second.errors == []
        finally:
            second.close()
        comfy_page.load_api(prompt)
        comfy_page.page.evaluate(LOOK)
        until(comfy_page, 41)
        assert marks(comfy_page) == wanted
        duels(comfy_page, name, comfy)
        assert comfy_page.prompt() == before  # nothing of it goes into prompts
    finally:
        comfy_page.use_vue_nodes(False)
    assert comfy_page.errors == own_errors == []
    picks = counting(taste_of(comfy_server, name).picks())
    assert [pick.kind for pick in picks] == ["hearts", "best"] + ["duel"] * 10 + ["same"]
    assert picks[0].answer == [1 if n in liked else -1 for n in range(40)]
    assert picks[1].answer == 7 and all((pick.ms or 0) > 0 for pick in picks)


def duels(page, name, client):
    """Answer ten duels, of which the last is an old one, and one more: the same."""
    way(page, "duels")
    page.page.locator(".pick-panel .cell.duel").first.focus()
    for count in range(42, 52):
        repeat = view(client, name)["repeat"]
        assert (repeat is not None) == (count == 51)
        press(page, "ArrowLeft" if count % 2 else "2", count)
    page.page.keyboard.press(" ")
    deadline = time.monotonic() + 10
    while view(client, name)["picks"] < 13:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert view(client, name)["own"]["asked"] == 1


def test_a_narrow_node_cuts_no_button_and_no_hint_off(name, comfy_page):
    comfy_page.load_api(picking(name, [0x404040, 0x808080, 0xC0C0C0], prompt="x"))
    comfy_page.page.evaluate(LOOK)
    comfy_page.page.evaluate(
        "() => window.app.graph.nodes.find((n) => n.type === 'ChunkGRPO_PickPictures')"
        ".setSize([320, 700])"
    )
    assert comfy_page.queue()[0] == "execution_success"
    until(comfy_page, 0)
    comfy_page.page.wait_for_function(
        "() => { const { width } = document.querySelector('.pick-panel').getBoundingClientRect();"
        " return width > 200 && width < 320; }"
    )
    for which in ("hearts", "best", "duels", "stars"):
        way(comfy_page, which)
        assert comfy_page.page.evaluate(CUT_OFF) == []
        assert comfy_page.page.evaluate(ROWS) <= 2  # letters of newer frontends are wider
    panel(comfy_page).locator("button.full").evaluate("(full) => full.click()")
    large = panel(comfy_page)
    comfy_page.page.keyboard.press("ArrowRight")
    large.focus()
    assert large.evaluate("(panel) => panel.matches(':focus-visible')")
    assert large.evaluate("(panel) => getComputedStyle(panel).outlineStyle") == "none"
    comfy_page.page.keyboard.press("Escape")
    assert comfy_page.errors == []


@pytest.mark.slow
def test_a_server_that_was_killed_shows_every_click_that_it_confirmed(
    name, tmp_path, comfy_browser
):
    server = ComfyServer(tmp_path / "comfy").start()
    confirmed: list[int] = []
    try:
        client = ComfyClient(server.url)
        prompt = picking(name, [0x0A0A0A * n for n in range(1, 25)], prompt="x")
        client.run(prompt)
        (batch,) = view(client, name)["batches"]

        def click():
            with contextlib.suppress(OSError, http.client.HTTPException):
                for place in range(24):
                    said = {"do": "hearts", "batch": batch["id"], "marks": [[place, 1]]}
                    if act(client, name, **said)[0] == 200:
                        confirmed.append(place)

        clicking = threading.Thread(target=click)
        clicking.start()
        while len(confirmed) < 3:
            time.sleep(0.005)
        server.kill()
        clicking.join()
        count = len(confirmed)
        assert 3 <= count < 24
        server.start()
        client = ComfyClient(server.url)
        hearts = view(client, name)["batches"][0]["hearts"]
        assert hearts[:count] == [1] * count and sum(hearts) <= count + 1
        with comfy_browser.apart() as browser:
            browser.url = server.url
            page = open_picker(browser, prompt)
            until(page, sum(hearts))
            assert marks(page) == ["liked" if heart else "" for heart in hearts]
    finally:
        server.stop()


@pytest.mark.slow
def test_every_pick_of_two_pages_outlives_a_reload_and_a_restart_of_the_server(
    name, tmp_path, comfy_browser
):
    """One page picks hearts, is loaded again, and picks on while another one picks stars."""
    server = ComfyServer(tmp_path / "comfy").start()
    prompt = picking(name, [0x0A0A0A * n for n in range(1, 13)], prompt="x")
    try:
        with comfy_browser.apart() as browser:
            browser.url = server.url
            first = open_picker(browser, prompt)
            assert first.queue()[0] == "execution_success"
            until(first, 0)
            for place in range(3):
                press_picture(first, place)
            until(first, 3)
            first.page.wait_for_timeout(1500)  # ComfyUI keeps a draft of the workflow a bit later
            first.page.reload(wait_until="domcontentloaded")
            first.page.wait_for_selector(".pick-panel .cell", state="attached", timeout=60_000)
            first.page.evaluate(LOOK)
            until(first, 3)
            assert marks(first)[:4] == ["liked"] * 3 + [""]
            second = open_picker(browser, prompt)
            until(second, 3)
            way(second, "stars")
            for place in range(3, 9):  # neither waits for the other
                press_picture(first, place)
                stars = panel(second).locator(".cell").nth(place).locator(".tool.star")
                stars.nth(3).evaluate("(star) => star.click()")
            for page in (first, second):
                until(page, 15)
            assert first.errors == second.errors == []
        said = view(ComfyClient(server.url), name)["batches"][0]
        server.stop()
        server.start()
        (batch,) = view(ComfyClient(server.url), name)["batches"]
        assert batch["hearts"] == said["hearts"] == [1] * 9 + [0] * 3
        assert batch["stars"] == said["stars"] == [None] * 3 + [4] * 6 + [None] * 3
        with comfy_browser.apart() as browser:
            browser.url = server.url
            page = open_picker(browser, prompt)
            until(page, 15)
            assert marks(page) == ["liked"] * 9 + [""] * 3
            way(page, "stars")
            cells = panel(page).locator(".cell")
            given = [cells.nth(n).locator(".star[aria-pressed=true]").count() for n in range(12)]
            assert given == [0] * 3 + [4] * 6 + [0] * 3
            assert page.errors == []
    finally:
        server.stop()


def press_picture(page, place):
    panel(page).locator(".cell").nth(place).evaluate("(cell) => cell.click()")
