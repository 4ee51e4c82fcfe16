"""Plans read off a curve."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
import torch
from fakes import curve_of
from hypothesis import given, settings
from hypothesis import strategies as st

from chunk_grpo_core.method.dynamics import dynamics_curve
from chunk_grpo_core.method.plan_text import read_plan, read_weights
from chunk_grpo_core.method.planners import adaptive_plan, segment_plan
from chunk_grpo_core.method.rollout import Trajectory
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid

POSITIVE = st.floats(0.0, exclude_min=True, allow_infinity=False)
CURVES = st.lists(POSITIVE, min_size=1, max_size=24)
PEAKS = (3, 4, 3, 4, 2)
"""Chunks of a curve that rises, falls, rises, ... by 0.1 at each step."""
STAIRS = (2, 3, 4, 7)
"""Chunks of a curve of four levels."""


@st.composite
def plans(draw):
    """Changes of the trainable steps, a plan that fits them, and the smallest chunk allowed."""
    values = draw(CURVES)
    steps = len(values)
    low = draw(st.integers(1, steps))
    high = draw(st.integers(low, steps + 2))
    count = draw(st.integers(1, steps // low))
    forms = {f"adaptive {low} {high}": low, f"cut {count} {low}": low, f"cut {count}": 1}
    forms |= {f"size {low}": 1, "step": 1, "whole": steps}
    text = draw(st.sampled_from(sorted(forms)))
    return values, text, forms[text]


@given(plans())
def test_every_planner_covers_any_steps_with_chunks_that_are_not_too_small(case):
    values, text, smallest = case
    plan = read_plan(text, len(values), curve_of(*values))
    assert [step for a, b in plan.bounds() for step in range(a, b)] == list(range(len(values)))
    assert min(plan.sizes) >= smallest
    if text.startswith("cut"):
        assert plan.count == int(text.split()[1])


# cut


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 2.0), min_size=4, max_size=9), st.integers(2, 4), st.integers(1, 2))
def test_no_other_cut_is_flatter(values, chunks, smallest):
    if chunks * smallest > len(values):
        return
    logs = [math.log(value) for value in values]

    def cost(edges):
        total = 0.0
        for a, b in itertools.pairwise(edges):
            mean = sum(logs[a:b]) / (b - a)
            total += sum((value - mean) ** 2 for value in logs[a:b])
        return total

    inner = itertools.combinations(range(1, len(values)), chunks - 1)
    cuts = [(0, *edges, len(values)) for edges in inner]
    best = min(cost(e) for e in cuts if min(b - a for a, b in itertools.pairwise(e)) >= smallest)
    bounds = segment_plan(curve_of(*values), chunks, smallest).bounds()
    assert cost((0, *(end for _, end in bounds))) == pytest.approx(best, abs=1e-9)


def test_a_smallest_chunk_moves_the_cut():
    drop = curve_of(9, 1, 1, 1, 1, 1)
    assert segment_plan(drop, 2).sizes == (1, 5)
    assert segment_plan(drop, 2, 2).sizes == (2, 4)


# adaptive


def rule_of_the_paper(values, max_size, order=1):
    """Sizes of the pieces of equal sign of the differences, halves where no sign changes."""
    if len(values) <= max_size:
        return [len(values)]
    signs = numpy.sign(numpy.diff(values, n=min(order, len(values) - 2)))
    turns = numpy.flatnonzero(numpy.diff(signs)) + 1 + len(values) - len(signs)
    parts = numpy.split(values, turns if len(turns) else [len(values) // 2])
    return [size for part in parts for size in rule_of_the_paper(part, max_size, order + 1)]


@given(
    st.lists(st.integers(1, 9).map(float) | st.floats(0.01, 2.0), min_size=1, max_size=24),
    st.integers(1, 6),
)
def test_adaptive_is_the_rule_of_the_paper(values, largest):
    expected = rule_of_the_paper(numpy.array(values), largest)
    assert list(adaptive_plan(curve_of(*values), 1, largest).sizes) == expected


def test_adaptive_cuts_where_the_curve_turns():
    falling_then_rising = (8, 6, 5, 4.5, 5, 6, 8, 11)
    assert adaptive_plan(curve_of(*falling_then_rising), 1, 4).sizes == (4, 4)


def test_adaptive_halves_a_stretch_without_a_turn():
    assert adaptive_plan(curve_of(1, 2, 3, 4, 5, 6, 7, 8), 2, 4).sizes == (4, 4)


def test_small_pieces_join_their_shorter_neighbour():
    rise_turn_fall = curve_of(1, 2, 3, 2.9, 3, 3.5)
    assert adaptive_plan(rise_turn_fall, 1, 3).sizes == (3, 1, 2)
    assert adaptive_plan(rise_turn_fall, 2, 3).sizes == (3, 3)


# Known boundaries


def peaks():
    changes, direction = [1.0], 1
    for size in PEAKS:
        for _ in range(size - (len(changes) == 1)):
            changes.append(changes[-1] + 0.1 * direction)
        direction = -direction
    return changes


def stairs():
    levels = (1.0, 0.6, 0.36, 0.2)
    return [level for size, level in zip(STAIRS, levels, strict=True) for _ in range(size)]


def measured(changes, noise, prompts, seed):
    """Measure one-dimensional latents that grow by these changes, each times 1 + noise."""
    changes = torch.tensor([*changes, 0.5])
    grid, generator = shifted_grid(len(changes)), torch.Generator().manual_seed(seed)
    trajectories = []
    for _ in range(prompts):
        factors = 1.0 + noise * torch.randn(len(changes), generator=generator)
        growth = torch.cat([torch.ones(1), 1.0 + (changes * factors).abs()])
        states = growth.cumprod(0).view(-1, 1, 1)
        log_p = states[1:-1, :, 0]
        noisy = torch.ones_like(log_p, dtype=torch.bool)
        trajectories.append(Trajectory("p", grid, SdeConfig(), states, log_p, noisy))
    return dynamics_curve(trajectories)


@pytest.mark.parametrize(
    ("text", "changes", "sizes"), [("adaptive 1 4", peaks(), PEAKS), ("cut 4", stairs(), STAIRS)]
)
def test_a_planner_finds_known_boundaries_in_noise_that_prompts_average_out(text, changes, sizes):
    def found(noise, prompts):
        curves = (measured(changes, noise, prompts, seed) for seed in range(20))
        return sum(read_plan(text, len(changes), curve).sizes == sizes for curve in curves)

    assert found(noise=0.0, prompts=1) == 20
    assert found(noise=0.2, prompts=150) == 20
    assert found(noise=0.2, prompts=1) < 10


# Text


def test_plans_are_read_from_text():
    bend = curve_of(9, 9, 5, 5, 5, 1, 1, 1, 1)
    assert read_plan("cut 3", 9, bend).sizes == (2, 3, 4)
    assert read_plan("Cut 3, 3", 9, bend).sizes == (3, 3, 3)
    assert read_plan("adaptive", 9, bend) == adaptive_plan(bend)
    assert read_plan("Adaptive 1, 3", 9, bend) == adaptive_plan(bend, 1, 3)
    assert read_plan("size 4", 9, bend).sizes == (4, 4, 1)


@pytest.mark.parametrize("text", ["adaptive", "cut 2"])
@pytest.mark.parametrize("weights", ["uniform", "0.5, 0.5"])
def test_plans_read_off_a_curve_remember_it(text, weights):
    bend = curve_of(5, 5, 1, 1)
    plan = read_plan(text, 4, bend)
    weights = weights if plan.count == 2 else "uniform"
    assert plan.source == read_weights(weights, plan).source == bend.source
    assert read_plan("2, 2", 4, bend).source is None


@pytest.mark.parametrize(
    ("text", "given_curve", "message"),
    [
        ("adaptive", None, "read off a curve; connect one"),
        ("cut", curve_of(1, 2, 3), "'cut'; write .* 'cut 4', 'cut 4 2'"),
        ("cut 1 1 1", curve_of(1, 2, 3), "'cut 1 1 1'; write"),
        ("cut 9", curve_of(1, 2, 3), "9 chunks of at least 1 steps do not fit into 3"),
        ("cut 2 2", curve_of(1, 2, 3), "2 chunks of at least 2 steps do not fit into 3"),
        ("cut 2", curve_of(1, 0, 3), "a step without any change"),
        ("adaptive 4 2", curve_of(1, 2, 3), "min_size is 4 and max_size 2"),
        ("adaptive 4 4", curve_of(1, 2, 3), "min_size is 4, but there are 3 trainable steps"),
        ("adaptiv", curve_of(1, 2, 3), "chunk plan is 'adaptiv'"),
    ],
)
def test_a_plan_that_cannot_be_says_why(text, given_curve, message):
    with pytest.raises(ValueError, match=message):
        read_plan(text, 3, given_curve)
