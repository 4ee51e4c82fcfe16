"""Chunk plans and weights as people write them, and what an editor shows of them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from fakes import curve_of
from hypothesis import given
from hypothesis import strategies as st

from chunk_grpo_core.method.chunks import ChunkPlan, chunk_weights
from chunk_grpo_core.method.plan_text import (
    check_plan_text,
    needs_curve,
    plan_steps,
    read_plan,
    read_weights,
    weight_numbers,
    weights_need_curve,
)
from chunk_grpo_core.method.planners import adaptive_plan, segment_plan
from chunk_grpo_core.watch.plan_view import (
    MOST_STEPS,
    MOST_STEPS_TO_CUT,
    PlanView,
    plan_view,
)

CURVE = curve_of(*(0.9 - 0.1 * step + 0.008 * step * step for step in range(12)))
SIZES = {
    "2, 3, 4, 3": (2, 3, 4, 3),
    "[2,3,4,3]": (2, 3, 4, 3),
    "(2;3 4\t3)": (2, 3, 4, 3),
    "2,3,4,3,": (2, 3, 4, 3),
    ",12": (12,),
    "\x1c12\x85": (12,),
    "6\u30006": (6, 6),
    "１２": (12,),
    "٣, ٩": (3, 9),
    "STEP": (1,) * 12,
    "[whole]": (12,),
    "whole,": (12,),
    "size 5": (5, 5, 2),
    "size,5": (5, 5, 2),
    "size\xa04": (4, 4, 4),
    "size 12": (12,),
}
CUTS = {
    "cut 4": segment_plan(CURVE, 4),
    "[CUT; 4, 2]": segment_plan(CURVE, 4, 2),
    "cut\xa04": segment_plan(CURVE, 4),
    "adaptive": adaptive_plan(CURVE),
    "Adaptive, 2, 4": adaptive_plan(CURVE, 2, 4),
}
NO_PLAN = (
    *("", " ", "[]", "two", "step 2", "size", "size 4 4", "size x", "size 0", "size 13", "²"),
    *("0, 12", "13", "-1, 13", "+12", "1.0, 11", "1_2", "\ufeff12", "2, x", "4 cut"),
    *("cut", "cut 0", "cut 13", "cut 4 4", "cut 4 2 1", "cut x", "cut -4"),
    *("adaptive 2", "adaptive 4 2", "adaptive 0 4", "adaptive 13 14", "adaptive 1 2 3"),
)


@pytest.mark.parametrize("text", SIZES)
def test_sizes_are_read_as_people_write_them(text):
    assert read_plan(text, 12).sizes == SIZES[text]
    assert not needs_curve(text)
    check_plan_text(text)


@pytest.mark.parametrize("text", CUTS)
def test_cuts_of_a_curve_are_read_as_people_write_them(text):
    assert read_plan(text, 12, CURVE) == CUTS[text]
    assert needs_curve(text)
    check_plan_text(text)
    assert plan_steps(text) is None


@pytest.mark.parametrize("text", NO_PLAN)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ValueError):
        read_plan(text, 12, CURVE)


@given(st.text(" ,;[]0123456789acdehiklopstuvwxz", max_size=12))
def test_any_text_is_a_plan_of_these_steps_or_refused(text):
    try:
        plan = read_plan(text, 12, CURVE)
    except ValueError:
        return
    assert plan.steps == 12
    check_plan_text(text)  # what can be read was not refused before


@pytest.mark.parametrize(
    "text", ["", "two", "size 0", "2, 0", "cut", "cut x", "adaptive 2", "step 3"]
)
def test_text_that_can_be_no_plan_is_refused_before_the_steps_are_known(text):
    with pytest.raises(ValueError):
        check_plan_text(text)


WEIGHTS = {
    "1 2 3": (1.0, 2.0, 3.0),
    "[0.5; .25, 5.]": (0.5, 0.25, 5.0),
    "1,2,3,": (1.0, 2.0, 3.0),
    "1e-3, 0, ٣": (1e-3, 0.0, 3.0),
    "1_0, 2, 1e9": (10.0, 2.0, 1e9),
}


@pytest.mark.parametrize("text", WEIGHTS)
def test_weights_are_read_as_people_write_them(text):
    assert read_weights(text, ChunkPlan((2, 4, 6))).weights == WEIGHTS[text]
    assert not weights_need_curve(text)
    assert tuple(map(float, weight_numbers(text))) == WEIGHTS[text]


@pytest.mark.parametrize(
    ("text", "temperature"),
    [
        ("curve", None),
        (" Curve ", None),
        ("softmax", 1.0),
        ("softmax, ٢", 2.0),
        ("softmax 5.", 5.0),
    ],
)
def test_weights_are_read_off_a_curve(text, temperature):
    plan = ChunkPlan((2, 4, 6))
    assert read_weights(text, plan, CURVE) == chunk_weights(plan, CURVE, temperature)
    assert weights_need_curve(text) and weight_numbers(text) is None


@pytest.mark.parametrize(
    "text",
    ["", "uniform 1", "curve 1", "softmax 0", "softmax -1", "softmax 1e3", "1, 2", "0, 0, 0",
     "1, -1, 1", "1__0, 2, 3", "nan, 1, 1", "0x1, 1, 1", "1, 2, x", "., 1, 1"],
)  # fmt: skip
def test_what_are_no_weights_is_refused(text):
    with pytest.raises(ValueError):
        read_weights(text, ChunkPlan((2, 4, 6)), CURVE)


# What an editor shows


def test_a_view_has_what_is_written():
    assert plan_view("2, 10", "0.50, 1") == PlanView(
        sizes=[2, 10], weights=[0.5, 1.0], numbers=["0.50", "1"]
    )
    assert plan_view("2, 10", "uniform") == plan_view("2, 10") == PlanView(sizes=[2, 10])
    assert plan_view("whole", "uniform", CURVE) == PlanView(sizes=[12])
    json.dumps(asdict(plan_view("cut 3", "curve", CURVE)))


def test_a_view_has_what_is_read_off_the_curve():
    plan = chunk_weights(segment_plan(CURVE, 3), CURVE)
    view = plan_view("cut 3", "curve", CURVE)
    assert view == PlanView(sizes=list(plan.sizes), weights=list(plan.weights))


@pytest.mark.parametrize("text", ["step", "size 4", "cut 4", "adaptive"])
def test_a_view_says_that_a_curve_is_missing(text):
    view = plan_view(text, "uniform")
    assert "run the graph" in view.note and replace(view, note=None) == PlanView()
    assert "need a curve" in plan_view("2, 10", "curve").note


@pytest.mark.parametrize("text", [text for text in NO_PLAN if text not in ("13", "-1, 13")])
def test_a_view_says_what_is_wrong_with_the_sizes(text):
    view = plan_view(text, "uniform", CURVE)
    assert view.problem and replace(view, problem=None) == PlanView()


def test_sizes_of_another_number_of_steps_are_shown_with_what_is_wrong():
    view = plan_view("2, 2", "1, 3", CURVE)
    assert (view.sizes, view.weights) == ([2, 2], [1.0, 3.0])
    assert "12 trainable" in view.problem


def test_wrong_weights_leave_the_sizes():
    view = plan_view("2, 10", "1", CURVE)
    assert view.sizes == [2, 10] and view.weights is None
    assert "weights" in view.problem


def test_what_is_too_long_to_draw_or_to_wait_for_is_not_read():
    view = plan_view(f"{MOST_STEPS}, 1", "uniform")
    assert view.sizes is None and "too many to draw" in view.note
    long = curve_of(*(1.0 + step for step in range(MOST_STEPS_TO_CUT + 1)))
    assert "run the graph" in plan_view("cut 4", None, long).note
    assert plan_view("step", None, long).sizes == [1] * (MOST_STEPS_TO_CUT + 1)
    longer = curve_of(*(1.0 + step for step in range(MOST_STEPS + 1)))
    assert "run the graph" in plan_view("step", None, longer).note


@pytest.mark.parametrize(
    "text", ["adaptive 3 2", "adaptive 0 0", "cut 13", "size 13", "13", "9, 9"]
)
def test_a_plan_that_does_not_fit_is_named_as_it_was_written(text):
    with pytest.raises(ValueError, match=f"^plan '{text}': "):
        read_plan(text, 12, CURVE)


@pytest.mark.parametrize("text", ["softmax 0", "Softmax 0.0"])
def test_weights_that_cannot_be_read_off_a_curve_are_named_as_they_were_written(text):
    with pytest.raises(ValueError, match=f"^weights '{text}': "):
        read_weights(text, ChunkPlan((4, 8)), CURVE)


@pytest.mark.parametrize("text", ["9" * 5000, "1 " * 50_000, "x" * 5000])
def test_a_long_plan_or_long_weights_are_shortened(text):
    for read in (
        lambda: read_plan(text, 12, CURVE),
        lambda: read_weights(text, ChunkPlan((4, 8)), CURVE),
    ):
        with pytest.raises(ValueError) as error:
            read()
        assert len(str(error.value)) < 600
