"""A first sigma just below 1, which schedulers and rounding make, trains as 1 does."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import GaussianWorld
from hypothesis import given
from hypothesis import strategies as st

from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import TimeGrid, shifted_grid

ETA = 0.7
JUST_BELOW = (0.99999994, 0.9999, 0.999, 0.995, 0.99, 0.985, 0.981)


def variance_at_the_end(grid, world):
    """Of x_0, exactly: each step is affine in x_t."""
    sde, variance = SdeConfig(rule="flow", eta=ETA), 1.0
    for t, s in grid.pairs():
        step = sde.coefficients(t, s)
        slope = float(world.velocity(torch.ones(1), t) - world.velocity(torch.zeros(1), t))
        variance = (step.a + step.b * slope) ** 2 * variance + step.std**2
    return variance


@pytest.mark.parametrize("first", JUST_BELOW)
@pytest.mark.parametrize(("steps", "shift"), [(9, 3.0), (17, 3.0), (10, 1.0), (50, 1.0)])
def test_a_first_sigma_just_below_one_changes_the_marginals_by_a_few_per_cent(first, steps, shift):
    world, whole = GaussianWorld(), shifted_grid(steps, shift)
    if first <= whole.sigmas[1]:
        return
    grid = TimeGrid((first, *whole.sigmas[1:]))
    assert SdeConfig(rule="flow", eta=ETA).std(*grid.pairs()[0]) < ETA * math.sqrt(3.0)
    wanted = variance_at_the_end(whole, world)
    assert variance_at_the_end(grid, world) == pytest.approx(wanted, rel=0.035)


@given(st.integers(3, 300), st.floats(0.05, 100.0), st.floats(0.01, 1.5))
def test_every_step_of_a_shifted_grid_is_that_of_the_paper_to_the_last_bit(steps, shift, eta):
    for t, s in shifted_grid(steps, shift).pairs()[:-1]:
        sigma_t = eta * math.sqrt(t / (1.0 - (t if t < 1.0 else s)))
        assert SdeConfig(rule="flow", eta=eta).std(t, s) == sigma_t * math.sqrt(t - s)


def test_the_noise_of_the_first_step_goes_to_that_of_one():
    at_one = SdeConfig(rule="flow", eta=ETA).coefficients(1.0, 0.98)
    beside = SdeConfig(rule="flow", eta=ETA).coefficients(1.0 - 1e-7, 0.98)
    assert beside == pytest.approx(at_one, rel=1e-5)
    assert at_one.std == pytest.approx(ETA)


def test_a_rollout_from_just_below_one_is_that_from_one():
    world, whole, sde = GaussianWorld(), shifted_grid(6), SdeConfig(rule="flow", eta=ETA)
    noise = Noise(False, 1, 4)
    groups = [
        rollout(world.velocity, "", TimeGrid((first, *whole.sigmas[1:])), sde, noise, (64,))
        for first in (1.0, 0.99999994)
    ]
    assert torch.allclose(groups[0].x_0, groups[1].x_0, atol=1e-4)
    assert torch.allclose(groups[0].log_p, groups[1].log_p, atol=1e-4)
