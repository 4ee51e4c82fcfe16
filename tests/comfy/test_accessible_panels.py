"""Panels of ours as an accessibility checker sees them: names of controls, contrast of texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import graphs
from .comparing import compared
from .graphs import node
from .picking import picking

CHECK = Path(__file__).with_name("accessible.js").read_text()
THEME = """async (name) => {
  await window.app.extensionManager.setting.set("Comfy.ColorPalette", name);
  await new Promise((done) => setTimeout(done, 400));
}"""
PANELS = {"monitor", "chunk-editor", "pick-panel", "duel-panel", "score-grid", "settings"}
"""One class of each panel that the graph below must show."""
CLASSES = """() => [...document.querySelectorAll(".chunk-grpo, .chunk-grpo *")]
  .filter((one) => one.checkVisibility()).flatMap((one) => [...one.classList])"""
SEEN = """() => [
  ".monitor .group img", ".score-grid .cell", ".duel-panel .duel img", ".pick-panel .cell .heart",
  ".settings .setting.own", ".chunk-editor .area",
].every((place) => document.querySelector(place))"""
COMPLAIN = """() => {
  for (const place of [".monitor .message", ".pick-panel .problem", ".chunk-editor .says"]) {
    for (const one of document.querySelectorAll(place)) {
      one.textContent = "Something is wrong";
      one.style.display = "";
    }
  }
  document.querySelector(".chunk-editor .says").classList.add("problem");
  const [liked, rejected] = document.querySelectorAll(".pick-panel .stage.hearts .cell");
  liked.querySelector("button.heart").click();
  rejected.querySelector("button.cross").click();
}"""
OVER_THE_PAGE = {
    "a picture of the group": (".monitor .group button", ".chunk-grpo-lightbox"),
    "a scored picture": (".score-grid .cell", ".chunk-grpo-lightbox"),
    "pictures to pick from": (".pick-panel[data-panel] .full", ".chunk-grpo-picker"),
    "a duel": (".duel-panel .full", ".chunk-grpo-picker"),
}
"""What is clicked, and what then lies over the page."""


def everything():
    """A training with a plan and settings, pictures to pick and to score, and blind duels."""
    prompt = compared(duels=2)
    prompt |= graphs.watched_training(9, iterations=3, run_name="looked at")
    prompt = graphs.change(prompt, "ChunkGRPO_PromptSet", held_out=4)
    prompt |= picking("looked at", [0xC02020, 0x20C020, 0x2020C0], prompt="three colours")
    images = prompt["picker"]["inputs"]["images"]
    prompt["blue"] = node("ChunkGRPO_LoadReward", name="target_colour", colour="#2060c0")
    prompt["scored"] = node(
        "ChunkGRPO_ScoreImages", prompt="blue", reward=["blue", 0], images=images
    )
    return prompt


@pytest.fixture(scope="module")
def shown(comfy_browser):
    """A page in which all panels hold something."""
    page = comfy_browser.open()
    page.page.set_viewport_size({"width": 2400, "height": 1500})
    page.load_api(everything(), "panels")
    assert page.queue()[0] == "execution_success"
    yield page
    page.page.evaluate(THEME, "dark")
    page.use_vue_nodes(False)
    page.close()


def faults(page, selector=".chunk-grpo"):
    return page.page.evaluate(f"([selector]) => ({CHECK})(selector)", [selector])


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes-2"])
def test_every_control_has_a_name_and_every_text_stands_out(vue, theme, shown):
    shown.use_vue_nodes(vue)
    shown.page.evaluate(THEME, theme)
    shown.show_all()
    shown.page.wait_for_function(SEEN, timeout=30_000)
    shown.page.evaluate(COMPLAIN)
    assert set(shown.page.evaluate(CLASSES)) >= PANELS
    found = faults(shown)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("what", OVER_THE_PAGE)
def test_what_lies_over_the_page_has_names_and_stands_out_too(what, theme, shown):
    button, box = OVER_THE_PAGE[what]
    shown.page.evaluate(THEME, theme)
    shown.page.locator(button).first.evaluate("(button) => button.click()")
    shown.page.wait_for_selector(f"{box} img")
    found = faults(shown, box)
    shown.page.keyboard.press("Escape")
    shown.page.wait_for_selector(box, state="detached")
    assert not found, "\n".join(found)


NEW_PLOT = """(saved) => {
  const node = window.LiteGraph.createNode("ChunkGRPO_PlotTraining");
  window.app.graph.add(node);
  if (saved !== null) node.configure({ ...node.serialize(), widgets_values: [saved] });
  const { value } = node.widgets.find((widget) => widget.name === "dark");
  window.app.graph.remove(node);
  return value;
}"""


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_a_new_node_draws_as_the_page_and_a_saved_one_as_it_was(theme, shown):
    shown.page.evaluate(THEME, theme)
    assert shown.page.evaluate(NEW_PLOT, None) is (theme == "dark")
    for saved in (False, True):
        assert shown.page.evaluate(NEW_PLOT, saved) is saved
