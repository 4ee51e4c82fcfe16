"""Time grids, chunk plans, their weights, and the draw of chunks."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import curve_of
from hypothesis import given, settings
from hypothesis import strategies as st

from chunk_grpo_core.method.chunks import (
    ChunkPlan,
    chunk_weights,
    draw_chunks,
    fixed_size_plan,
    per_step_plan,
    whole_plan,
)
from chunk_grpo_core.method.plan_text import plan_steps, read_plan, read_weights
from chunk_grpo_core.method.schedule import TimeGrid, shifted_grid

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=8).map(tuple)


@given(st.integers(2, 60), st.floats(0.05, 20.0))
def test_shifted_grid_falls_from_one_to_zero(steps, shift):
    grid = shifted_grid(steps, shift)
    assert grid.sigmas[0] == 1.0 and grid.sigmas[-1] == 0.0
    assert all(s < t for t, s in grid.pairs())
    assert (grid.steps, grid.trainable_steps, len(grid.pairs())) == (steps, steps - 1, steps)


def test_shift_one_is_even_and_shift_three_leans_to_noise():
    assert shifted_grid(4, 1.0).sigmas == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert shifted_grid(2, 3.0).sigmas == pytest.approx((1.0, 0.75, 0.0))


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ((1.0, 0.0), "at least 2 steps.*2 sigmas"),
        ((1.1, 0.5, 0.0), "first sigma is 1.1; samples start from pure noise, so it must be 1"),
        ((0.0, -0.5, 0.0), "first sigma is 0.0"),
        ((math.nan, 0.5, 0.0), "first sigma is nan"),
        ((1.0, 0.5, 0.1), "last sigma is 0.1; it must be 0"),
        ((1.0, 0.5, 0.5, 0.0), "fall strictly, from noise to data, but 0.5 follows 0.5"),
        ((1.0, *(0.1,) * 99, 0.0), r"0.1 follows 0.1 in \[1, 0.1, .*, \.\.\.\]$"),
        (("a", "b", "c"), "could not convert"),
        ((1.0, [0.5], 0.0), r"sigmas must be numbers, got \[1, \[0.5\], 0\]"),
        ((1.0, None, 0.0), "sigmas must be numbers"),
        ((1.0,), "at least 2 steps.*1 sigmas"),
        ((1.0, -0.5, 0.0), "sigma number 2 is -0.5"),
        ((1.0, math.inf, 0.0), "sigma number 2 is inf"),
        ((1.0, 0.2, 0.5, 0.0), "fall strictly"),
        ((1.0, math.nan, 0.0), "sigma number 2 is nan; noise levels must be in 0..1"),
    ],
)
def test_bad_sigmas_are_refused_with_the_value(sigmas, message):
    with pytest.raises(ValueError, match=message):
        TimeGrid.of(sigmas)


@pytest.mark.parametrize(
    ("steps", "shift", "message"),
    [
        (1, 3.0, "steps is 1; it must be 2"),
        (9 * 10**18, 3.0, "steps is 9000000000000000000; .* at most 10000"),
        (4, 0.0, "shift is 0.0"),
        (4, math.nan, "shift is nan"),
        (4, 1e-300, "shift is 1e-300; it must be from 0.01 to 100"),
        (4, 1e300, "shift is 1e\\+300"),
    ],
)
def test_bad_grid_settings_are_refused(steps, shift, message):
    with pytest.raises(ValueError, match=message):
        shifted_grid(steps, shift)


@given(SIZES)
def test_plan_partitions_the_steps_exactly(sizes):
    plan = ChunkPlan(sizes)
    covered = [step for start, end in plan.bounds() for step in range(start, end)]
    assert covered == list(range(sum(sizes))) and plan.steps == sum(sizes)
    assert [end - start for start, end in plan.bounds()] == list(sizes)
    for chunk, (start, end) in enumerate(plan.bounds()):
        assert {plan.chunk_of(step) for step in range(start, end)} == {chunk}


@given(st.integers(1, 40), st.integers(1, 40))
def test_fixed_size_plan_shortens_only_the_last_chunk(steps, size):
    if size > steps:
        with pytest.raises(ValueError, match=f"chunk size is {size}; it must be in 1..{steps}"):
            fixed_size_plan(size, steps)
        return
    plan = fixed_size_plan(size, steps)
    assert plan.steps == steps
    assert set(plan.sizes[:-1]) <= {size} and 1 <= plan.sizes[-1] <= size


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("step", (1,) * 8),
        (" Whole ", (8,)),
        ("size 3", (3, 3, 2)),
        ("SIZE 8", (8,)),
        ("1, 2, 2, 3", (1, 2, 2, 3)),
        ("[1,2,2,3]", (1, 2, 2, 3)),
        ("(1; 2; 2; 3)", (1, 2, 2, 3)),
        ("1 2 2 3", (1, 2, 2, 3)),
    ],
)
def test_plans_are_read_as_people_write_them(text, sizes):
    assert read_plan(text, 8).sizes == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "chunk plan is ''; write .* 'step', 'whole'"),
        ("steps", "chunk plan is 'steps'"),
        ("1, -2, 9", "chunk plan is '1, -2, 9'"),
        ("2.5, 5.5", "chunk plan is '2.5, 5.5'"),
        ("size four", "chunk plan is 'size four'"),
        ("size 0", r"chunk size is 0; it must be in 1..8"),
        ("size 9", r"chunk size is 9; it must be in 1..8"),
        ("0, 8", r"chunk sizes are \[0, 8\].*each 1 or more"),
        ("2, 3, 4", r"\[2, 3, 4\] cover 9 steps, but there are 8"),
    ],
)
def test_other_plans_are_refused_with_what_was_written(text, message):
    with pytest.raises(ValueError, match=message):
        read_plan(text, 8)


@pytest.mark.parametrize(("text", "steps"), [("2, 3, 4, 7", 16), ("step", None), ("size 4", None)])
def test_only_sizes_tell_how_many_steps_they_cover(text, steps):
    assert plan_steps(text) == steps


@pytest.mark.parametrize("sizes", [(), (0,), (2, -1)])
def test_empty_chunks_are_refused(sizes):
    with pytest.raises(ValueError, match="at least one, each 1 or more"):
        ChunkPlan(sizes)


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_bad_chunk_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        ChunkPlan((1, 2), weights)


@pytest.mark.parametrize("weights", [None, (0.25, 0.75)])
def test_plan_survives_json(weights):
    plan = ChunkPlan((1, 2), weights)
    assert ChunkPlan.from_json(plan.to_json()) == plan


@given(SIZES, st.floats(0.01, 1.0), st.integers(0, 2**40))
def test_draw_takes_the_right_number_of_different_chunks(sizes, fraction, seed):
    drawn = draw_chunks(ChunkPlan(sizes), fraction, 5, seed)
    assert drawn.shape == (5, len(sizes)) and drawn.dtype == torch.bool
    assert drawn.sum(1).tolist() == [max(1, int(len(sizes) * fraction))] * 5


@pytest.mark.parametrize(
    ("chunks", "fraction", "count"),
    # as int(num_chunks * timestep_fraction) of GCPO's and DanceGRPO's train_one_step
    [(7, 0.5, 3), (5, 0.5, 2), (3, 0.5, 1), (4, 0.5, 2), (15, 0.6, 9), (11, 0.6, 6), (1, 0.5, 1)],
)
def test_the_number_of_drawn_chunks_is_rounded_down_as_in_the_official_code(
    chunks, fraction, count
):
    drawn = draw_chunks(per_step_plan(chunks), fraction, 6, seed=0)
    assert drawn.sum(1).tolist() == [count] * 6


def test_draw_depends_on_the_seed_alone():
    plan = per_step_plan(8)
    torch.manual_seed(0)
    first = draw_chunks(plan, 0.5, 64, 3)
    torch.manual_seed(1)
    assert torch.equal(draw_chunks(plan, 0.5, 64, 3), first)
    assert not torch.equal(draw_chunks(plan, 0.5, 64, 4), first)
    assert len({tuple(row) for row in first.tolist()}) > 20  # each sample draws its own


def test_a_chunk_of_weight_0_is_never_drawn():
    plan = ChunkPlan((1, 2, 1), (0.5, 0.0, 0.5))
    assert not draw_chunks(plan, 0.5, 500, 0)[:, 1].any()
    with pytest.raises(ValueError, match="draws 3 of 3 chunks, but only 2 have a weight above 0"):
        draw_chunks(plan, 1.0, 4, 0)


@pytest.mark.parametrize("weights", [None, (0.7, 0.1, 0.2)])
def test_draw_follows_the_weights(weights):
    drawn = draw_chunks(ChunkPlan((1, 1, 1), weights), 1 / 3, 20_000, 0)
    expected = torch.tensor(weights or (1 / 3,) * 3)
    assert torch.allclose(drawn.float().mean(0), expected, atol=0.015)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, math.nan])
def test_bad_fraction_of_chunks_is_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction of chunks.*must be in \(0, 1\]"):
        draw_chunks(whole_plan(4), fraction, 2, 0)


def test_chunk_weights_are_the_mean_change_of_each_chunk():
    curve = curve_of(0.6, 0.2, 0.4)
    weighted = chunk_weights(ChunkPlan((1, 2)), curve)
    assert weighted.sizes == (1, 2) and weighted.weights == pytest.approx((2 / 3, 1 / 3))
    with pytest.raises(ValueError, match="cover 4 steps, but there are 3"):
        chunk_weights(ChunkPlan((2, 2)), curve)
    with pytest.raises(ValueError, match="no step with any change"):
        chunk_weights(ChunkPlan((1, 2)), curve_of(0.0, 0.0, 0.0))


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 2.0), min_size=5, max_size=5), st.floats(0.05, 20.0))
def test_softmax_weights_are_the_softmax_of_the_mean_change(values, temperature):
    weighted = chunk_weights(ChunkPlan((2, 1, 2)), curve_of(*values), temperature)
    means = torch.tensor([sum(values[:2]) / 2, values[2], sum(values[3:]) / 2]).double()
    expected = torch.softmax(means / temperature, 0).tolist()
    assert weighted.weights == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_a_cold_softmax_trains_the_chunk_that_changes_most_and_no_other():
    weighted = chunk_weights(ChunkPlan((1, 1, 2)), curve_of(0.3, 0.6, 0.4, 0.2), 1e-5)
    assert weighted.weights == (0.0, 1.0, 0.0)
    assert draw_chunks(weighted, 1 / 3, 50, 0).tolist() == [[False, True, False]] * 50


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_softmax_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature is {temperature}; it must be above 0"):
        chunk_weights(ChunkPlan((1, 1)), curve_of(0.5, 0.4), temperature)


def test_weights_are_read_from_text():
    plan, curve = ChunkPlan((1, 2, 2)), curve_of(0.6, 0.5, 0.4, 0.3, 0.2)
    assert read_weights("uniform", plan).weights is None
    assert read_weights("0.5, 0.3 0.2", plan).weights == (0.5, 0.3, 0.2)
    assert read_weights("0, 1, 0", plan).weights == (0.0, 1.0, 0.0)
    assert read_weights(" Curve ", plan, curve) == chunk_weights(plan, curve)
    assert read_weights("softmax", plan, curve) == chunk_weights(plan, curve, 1.0)
    for text in ("softmax 0.5", "Softmax, .5"):
        assert read_weights(text, plan, curve) == chunk_weights(plan, curve, 0.5)
    for text in ("curve", "softmax", "softmax 2"):
        with pytest.raises(ValueError, match=f"'{text}', but no curve is connected"):
            read_weights(text, plan)
    with pytest.raises(ValueError, match="temperature is 0.0; it must be above 0"):
        read_weights("softmax 0", plan, curve)
    other = ("0.5, 0.5", "0.5, -1, 0.5", "0, 0, 0", "much", "", "curve 2", "softmax 1 2")
    for text in (*other, "softmax much", "softmax -1"):
        with pytest.raises(ValueError, match="one number, 0 or more, for each of the 3 chunks"):
            read_weights(text, plan, curve)
