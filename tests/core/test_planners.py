"""Plans read off a curve."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunk_grpo_core.dynamics import DynamicsCurve
from chunk_grpo_core.planners import adaptive_plan, read_plan, segment_plan


def curve(*mean):
    """A curve of these steps; the untrained last one is added."""
    values = (*mean, 0.5)
    return DynamicsCurve(
        mean=values, std=(0.0,) * len(values), prompts=1, samples=1,
        sigmas=(1.0, 0.0), rule="flow", eta=0.7, model="",
    )  # fmt: skip


CURVES = st.lists(st.floats(1e-3, 2.0), min_size=2, max_size=24)


@given(CURVES, st.integers(1, 4), st.integers(0, 6))
def test_adaptive_plans_cover_the_steps_with_chunks_that_are_not_too_small(values, low, more):
    plan = adaptive_plan(curve(*values), low, low + more)
    plan.check_covers(len(values))
    assert min(plan.sizes) >= min(low, len(values))


@given(CURVES, st.integers(1, 6))
def test_cut_plans_cover_the_steps_with_the_wished_number_of_chunks(values, chunks):
    chunks = min(chunks, len(values))
    plan = segment_plan(curve(*values), chunks)
    plan.check_covers(len(values))
    assert plan.count == chunks


def test_cut_finds_the_levels_of_a_staircase():
    assert segment_plan(curve(9, 9, 5, 5, 5, 1, 1, 1, 1), 3).sizes == (2, 3, 4)
    assert segment_plan(curve(1, 1, 1, 1, 1, 1, 4, 4), 2).sizes == (6, 2)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 2.0), min_size=4, max_size=9), st.integers(2, 4))
def test_no_other_cut_is_flatter(values, chunks):
    logs = [math.log(value) for value in values]

    def cost(edges):
        total = 0.0
        for a, b in zip(edges, edges[1:], strict=False):
            mean = sum(logs[a:b]) / (b - a)
            total += sum((value - mean) ** 2 for value in logs[a:b])
        return total

    inner = itertools.combinations(range(1, len(values)), chunks - 1)
    best = min(cost((0, *edges, len(values))) for edges in inner)
    bounds = segment_plan(curve(*values), chunks).bounds()
    assert cost((0, *(end for _, end in bounds))) == pytest.approx(best, abs=1e-9)


def test_adaptive_cuts_where_the_curve_turns():
    falling_then_rising = (8, 6, 5, 4.5, 5, 6, 8, 11)
    assert adaptive_plan(curve(*falling_then_rising), 1, 4).sizes == (4, 4)


def test_adaptive_halves_a_stretch_without_a_turn():
    assert adaptive_plan(curve(1, 2, 3, 4, 5, 6, 7, 8), 2, 4).sizes == (4, 4)


def test_small_pieces_join_their_shorter_neighbour():
    zigzag = (1, 2, 1, 2, 1, 2, 1, 2)
    assert min(adaptive_plan(curve(*zigzag), 2, 3).sizes) >= 2


def test_plans_are_read_from_text():
    bend = curve(9, 9, 5, 5, 5, 1, 1, 1, 1)
    assert read_plan("cut 3", 9, bend).sizes == (2, 3, 4)
    assert read_plan("adaptive", 9, bend) == adaptive_plan(bend)
    assert read_plan("Adaptive 1, 3", 9, bend) == adaptive_plan(bend, 1, 3)
    assert read_plan("size 4", 9, bend).sizes == (4, 4, 1)


@pytest.mark.parametrize(
    ("text", "given_curve", "message"),
    [
        ("adaptive", None, "read off a curve; connect one"),
        ("cut", curve(1, 2, 3), "write 'adaptive', 'adaptive 2 4', or 'cut 4'"),
        ("cut 9", curve(1, 2, 3), "9 chunks of at least 1 steps do not fit into 3"),
        ("adaptive 4 2", curve(1, 2, 3), "min_size is 4 and max_size 2"),
        ("adaptiv", curve(1, 2, 3), "chunk plan is 'adaptiv'"),
    ],
)
def test_a_plan_that_cannot_be_says_why(text, given_curve, message):
    with pytest.raises(ValueError, match=message):
        read_plan(text, 3, given_curve)
