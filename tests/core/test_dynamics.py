"""Distances of consecutive states, and the curve that averages them."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chunk_grpo_core.method.dynamics import DISTANCES, DynamicsCurve, dynamics_curve
from chunk_grpo_core.method.rollout import Trajectory
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.watch.plots import plot_dynamics

every_distance = pytest.mark.parametrize("name", DISTANCES)
SEEDS = st.integers(0, 2**31)


def trajectory_of(states, grid=None):
    """A trajectory of given states (N + 1, G, *latent), without log-densities."""
    grid = grid or shifted_grid(len(states) - 1)
    log_p = torch.zeros(len(states) - 2, states.shape[1])
    return Trajectory("p", grid, SdeConfig(), states, log_p, torch.ones_like(log_p).bool())


def random_states(seed):
    """States (5, 3, 4, 2, 2): 4 steps of 3 samples."""
    return torch.randn(5, 3, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


def by_hand(name, before, after):
    """The distance of two lists of numbers, from its definition."""
    size = {"l1": lambda x: sum(map(abs, x)), "l2": lambda x: math.sqrt(sum(a * a for a in x))}
    if name == "cosine":
        inner = sum(a * b for a, b in zip(before, after, strict=True))
        return 1.0 - inner / (size["l2"](before) * size["l2"](after))
    change = [b - a for a, b in zip(before, after, strict=True)]
    return size[name](change) / size[name](before)


@every_distance
def test_a_distance_is_that_of_its_definition(name):
    states = random_states(0)
    found = DISTANCES[name](trajectory_of(states))
    lists = states.flatten(2).double().tolist()
    expected = [
        [by_hand(name, a, b) for a, b in zip(before, after, strict=True)]
        for before, after in zip(lists, lists[1:], strict=False)
    ]
    assert found.shape == (4, 3)
    numpy.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@every_distance
@settings(deadline=None)
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_no_distance_depends_on_the_scale_of_the_latents(name, seed, scale):
    states = random_states(seed)
    found, scaled = (DISTANCES[name](trajectory_of(x)) for x in (states, scale * states))
    torch.testing.assert_close(scaled, found, rtol=1e-4, atol=1e-6)


@every_distance
def test_a_state_that_stays_has_distance_0(name):
    still = random_states(1)[:1].expand(4, -1, -1, -1, -1)
    assert torch.equal(DISTANCES[name](trajectory_of(still)), torch.zeros(3, 3))


@settings(deadline=None)
@given(SEEDS)
def test_the_cosine_distance_alone_ignores_lengths(seed):
    states = random_states(seed)
    lengths = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.1]).view(5, 1, 1, 1, 1)
    for name, distance in DISTANCES.items():
        found, stretched = (distance(trajectory_of(x)) for x in (states, lengths * states))
        ignores = torch.allclose(found, stretched, rtol=1e-4, atol=1e-6)
        assert ignores == (name == "cosine")


@pytest.mark.parametrize("angle", [1e-3, 0.3, math.pi / 2, math.pi])
def test_cosine_distance_of_a_known_angle_keeps_its_digits(angle):
    turns = [[math.cos(i * angle), math.sin(i * angle)] for i in range(4)]
    found = DISTANCES["cosine"](trajectory_of(torch.tensor(turns).view(4, 1, 2)))
    assert found.flatten().tolist() == pytest.approx([2 * math.sin(angle / 2) ** 2] * 3, rel=1e-3)


@pytest.mark.parametrize("name", ["l1", "l2"])
@settings(deadline=None)
@given(scale=st.floats(0.1, 10.0), factor=st.floats(-0.9, 0.9))
def test_relative_change_of_a_shrinking_latent_is_its_shrinkage(name, scale, factor):
    if abs(factor) > 0.1:
        states = torch.stack([torch.full((3, 2), scale * factor**i) for i in range(3)])
        found = DISTANCES[name](trajectory_of(states))
        assert torch.allclose(found, torch.full((2, 3), 1.0 - factor), rtol=1e-5)


def test_curve_averages_groups_first_and_prompts_second():
    first = torch.tensor([[[1.0], [1.0]], [[2.0], [4.0]], [[2.0], [4.0]]])  # 1 and 3, then 0
    second = torch.tensor([[[1.0], [1.0]], [[1.0], [1.0]], [[2.0], [2.0]]])  # 0, then 1
    curve = dynamics_curve([trajectory_of(first), trajectory_of(second)], "toy")
    assert curve.mean == (1.0, 0.5)
    assert curve.std == pytest.approx((2**0.5, 0.5**0.5))
    assert (curve.prompts, curve.samples, curve.model) == (2, 4, "toy")
    assert dynamics_curve([trajectory_of(first)]).std == (0.0, 0.0)


@every_distance
def test_curve_remembers_how_it_was_measured(name):
    trajectory = trajectory_of(random_states(2))
    curve = dynamics_curve([trajectory], "toy", name)
    assert curve.mean == pytest.approx(DISTANCES[name](trajectory).mean(1).tolist())
    assert DynamicsCurve.from_json(curve.to_json()) == curve
    kept = {key: getattr(curve, key) for key in ("rule", "eta", "sigmas", "model", "distance")}
    assert kept == {key: getattr(curve.source, key) for key in kept}
    assert (kept["distance"], kept["sigmas"]) == (name, trajectory.grid.sigmas)


def test_curves_written_before_there_were_distances_are_relative_l1():
    curve = dynamics_curve([trajectory_of(random_states(3))])
    data = curve.to_json()
    del data["distance"]
    assert DynamicsCurve.from_json(data) == curve


def test_curve_that_cannot_be_measured_says_why():
    states = torch.ones(3, 1, 2)
    with pytest.raises(ValueError, match="no trajectory"):
        dynamics_curve([])
    with pytest.raises(ValueError, match="different grids"):
        dynamics_curve([trajectory_of(states), trajectory_of(states, shifted_grid(2, 1.0))])
    mixed = trajectory_of(states)
    mixed.stochastic[0] = False
    with pytest.raises(
        ValueError, match="some steps took no noise, but the rule is flow; roll out"
    ):
        dynamics_curve([trajectory_of(states), mixed])
    with pytest.raises(ValueError, match="distance is 'l3'; it must be one of l1, l2, cosine"):
        dynamics_curve([trajectory_of(states)], distance="l3")
    with pytest.raises(ValueError, match="values that are not finite"):
        dynamics_curve([trajectory_of(states.index_fill(0, torch.tensor(1), math.nan))])


def test_the_plot_names_the_distance():
    data = dynamics_curve([trajectory_of(random_states(4))]).to_json()
    plots = [plot_dynamics(DynamicsCurve.from_json({**data, "distance": n})) for n in DISTANCES]
    for index, plot in enumerate(plots):
        rest = plots[index + 1 :]
        assert all(not torch.equal(plot, other) for other in rest)
        assert all(torch.equal(plot[:, 200:], other[:, 200:]) for other in rest)  # the axis alone
