"""A training that asks, in a real page: its person votes with the mouse and with keys alone."""

from __future__ import annotations

import time

import pytest

from chunk_grpo_core.rewards.taste.picks import Taste

from .test_asking_graphs import voting

ASKING = ".chunk-grpo.monitor .asking"
LARGE = ".chunk-grpo-picker"
NEW_PICTURES = """([panel, old]) => {
  const files = [...document.querySelectorAll(`${panel} .cell img`)].map((image) => image.src);
  return files.length && files.join() !== old && files.join();
}"""


class Voter:
    """Somebody at a page that asks, and the picks that come of it."""

    def __init__(self, page, folder):
        self.tab, self._taste, self._pictures = page.page, Taste(folder), ""

    def sees_new_pictures(self, panel=ASKING):
        """Wait for a question that was not there before."""
        new = self.tab.wait_for_function(NEW_PICTURES, arg=[panel, self._pictures], timeout=120_000)
        self._pictures = new.json_value()

    def has_picked(self, *picks):
        """Whether these (kind, answer) are what was picked, soon."""
        deadline = time.monotonic() + 20
        while (made := [(p.kind, p.answer) for p in self._taste.picks()]) != list(picks):
            assert time.monotonic() < deadline, made
            self.tab.wait_for_timeout(50)
        return True


@pytest.mark.slow
@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes-2"])
def test_votes_in_the_page_go_on_by_keys_from_one_question_to_the_next(
    vue, comfy_page, comfy_server
):
    comfy_page.use_vue_nodes(vue)
    try:
        vote_with_mouse_and_keys(comfy_page, comfy_server, f"voted in the page {vue}")
    finally:
        comfy_page.use_vue_nodes(False)


def vote_with_mouse_and_keys(comfy_page, comfy_server, name):
    comfy_page.load_api(voting(name, prompts_per_iteration=4), "votes")
    comfy_page.show_all()
    comfy_page.page.evaluate("() => window.app.queuePrompt(0, 1)")
    voter = Voter(comfy_page, comfy_server.output / "chunk_grpo" / "taste" / name)
    tab = comfy_page.page

    voter.sees_new_pictures()
    assert tab.locator(f"{ASKING} .foot .primary").all_inner_texts() == ["That is all"]
    tab.locator(f"{ASKING} .cell").nth(1).click()
    picks = [("best", 1), ("done", None)]
    assert voter.has_picked(*picks)

    voter.sees_new_pictures()
    tab.wait_for_function(
        "(panel) => document.querySelector(panel).contains(document.activeElement)", arg=ASKING
    )
    tab.keyboard.press("3")
    picks += [("best", 2), ("done", None)]
    assert voter.has_picked(*picks)

    # Over the whole page: another way, a mark, and Enter says that this was all.
    voter.sees_new_pictures()
    tab.locator(f"{ASKING} button.full").click()
    tab.locator(f"{LARGE} .way.hearts").click()
    tab.keyboard.press("1")
    picks += [("hearts", [1, 0, 0])]
    assert voter.has_picked(*picks)
    tab.keyboard.press("Enter")
    picks += [("done", None)]
    assert voter.has_picked(*picks)

    voter.sees_new_pictures(LARGE)
    tab.keyboard.press("s")
    picks += [("skip", None), ("done", None)]
    assert voter.has_picked(*picks)
    tab.locator(LARGE).wait_for(state="detached", timeout=120_000)
    tab.locator(".chunk-grpo.monitor .state.finished").wait_for(state="attached")
    assert not tab.locator(ASKING).is_visible() and not comfy_page.errors
