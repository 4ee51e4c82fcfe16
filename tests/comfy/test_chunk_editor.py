"""The chunk editor in the page: pointer and keys write the text that the server reads."""

import json

import pytest

from . import graphs
from .chunk_editor import KEY, NODE, TYPE, VALUE, Editor, curve_graph, plan_graph

pytestmark = pytest.mark.browser


@pytest.fixture
def editor(comfy_page):
    """Give the editor in the classic canvas; afterwards nothing may have complained."""
    yield from editor_of(comfy_page, False)


@pytest.fixture(params=[False, True], ids=["classic", "nodes_2"])
def both(request, comfy_page):
    """Give the editor in one renderer, then in the other."""
    yield from editor_of(comfy_page, request.param)


def editor_of(page, vue):
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


def test_comfyui_undoes_an_edit(both):
    both.open(plan_graph())
    both.drag(5, 7)
    both.tab.wait_for_timeout(300)
    assert both.value() == "2, 5, 2, 7"
    both.press("Control+z")
    both.tab.wait_for_function(f"() => ({VALUE})('chunk_sizes') === '2, 3, 4, 7'")
    both.tab.wait_for_timeout(300)
    assert both.sizes() == [2, 3, 4, 7]


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


def test_typing_redraws(editor):
    editor.open(plan_graph())
    editor.type("5, 5")
    assert editor.sizes() == [5, 5]


def test_typing_in_nodes_2_redraws(comfy_page):
    editor = Editor(comfy_page, vue=True).open(plan_graph())
    editor.tab.get_by_label("chunk_sizes", exact=True).fill("5, 5")
    editor.tab.wait_for_timeout(300)
    assert editor.value() == "5, 5"
    assert editor.sizes() == [5, 5]


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("two", ["'two'", "2, 3, 4, 7", "adaptive"]),
        ("2, 0", ["2, 0", "1 or more"]),
        ("", ["whole"]),
        ("cut x", ["'cut x'", "cut 4 2"]),
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


def test_words_say_what_they_need(editor):
    editor.open(plan_graph())
    for text, needs in (("step", "any number of steps"), ("size 4", "any"), ("cut 4", "curve")):
        editor.type(text)
        assert "run the graph" in editor.says() and needs in editor.says()


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
    editor.type("cut 5")  # the curve is known: no run is needed
    assert len(editor.sizes()) == 5 and sum(editor.sizes()) == steps and editor.has_curve()
    editor.type("cut 3")
    edge = shown["sizes"][0]
    editor.drag(edge, edge + 1)
    moved = [edge + 1, shown["sizes"][1] - 1, shown["sizes"][2]]
    assert editor.value() == ", ".join(map(str, moved))
    editor.type("2, 2")
    assert f"{steps} trainable" in editor.says()
    assert not editor.has_curve()


def test_a_reloaded_page_and_a_second_one_show_the_last_curve(browser_apart, comfy):
    page = browser_apart.open()
    editor = Editor(page).open(curve_graph())
    editor.run(comfy)
    saved = page.serialize()
    assert "mean" not in json.dumps(saved)
    line = ".chunk-editor .curve polyline"
    points = editor.tab.locator(line).get_attribute("points")
    assert len(points.split()) == 17
    editor.tab.reload(wait_until="domcontentloaded")
    editor.tab.wait_for_selector(".chunk-editor", state="attached", timeout=60_000)
    editor.look()  # the page opens what it showed before
    editor.tab.wait_for_selector(line)
    assert editor.tab.locator(line).get_attribute("points") == points
    second = browser_apart.open()
    second.load(saved)
    second.page.wait_for_selector(line)
    assert second.errors == []


def test_another_workflow_does_not_get_the_curve(editor, comfy):
    editor.open(curve_graph(chunk_sizes="8, 8"))
    editor.run(comfy)
    editor.open(plan_graph())
    editor.tab.wait_for_timeout(700)
    assert not editor.has_curve()


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


def test_the_server_tells_the_page_the_plan_without_a_curve(comfy):
    run = comfy.run(plan_graph(chunk_sizes="2, 2", weights="1, 3"))
    (shown,) = run.outputs["8"][KEY]
    assert shown == {
        "sizes": [2, 2],
        "weights": [1.0, 3.0],
        "steps": 4,
        "curve": None,
    }
