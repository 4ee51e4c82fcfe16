"""The walk down a grid, and what records it or only wants its end.

Legend: G samples in a group, N steps.
"""

from __future__ import annotations

import pytest
import torch
from fakes import GaussianWorld

from chunk_grpo_core.method import solvers
from chunk_grpo_core.method.noise import Noise, draw_normal
from chunk_grpo_core.method.replay import replay_step
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import RULES, SdeConfig
from chunk_grpo_core.method.schedule import TimeGrid, shifted_grid
from chunk_grpo_core.method.walk import StepNoise, sample_ode, walk, walk_to_end

WORLD = GaussianWorld()
GRID = shifted_grid(5)
G, STEPS = 4, GRID.trainable_steps
STOCHASTIC = sorted(set(RULES) - {"ode"})


@pytest.fixture
def computed(monkeypatch):
    """Which step was computed by the rule and which by the solver, as (kind, t)."""
    calls = []
    flow, euler = RULES["flow"], solvers.euler

    def counted_rule(t, s, eta):
        calls.append(("flow", t))
        return flow(t, s, eta)

    def counted_solver(x_t, v_t, t, s, last):
        calls.append(("ode", t))
        return euler(x_t, v_t, t, s, last)

    monkeypatch.setitem(RULES, "flow", counted_rule)
    monkeypatch.setitem(solvers.SOLVERS, "euler", counted_solver)
    return calls


def test_only_the_kind_of_step_that_a_sample_takes_is_computed(computed):
    stochastic = torch.zeros(G, STEPS, dtype=torch.bool)
    stochastic[:, 1] = True
    stochastic[0, 2] = True
    rollout(
        WORLD.velocity,
        "p",
        GRID,
        SdeConfig(),
        Noise(False, 3, G),
        (2, 3),
        stochastic=stochastic,
    )
    times = GRID.sigmas
    assert computed == [
        ("ode", times[0]),
        ("flow", times[1]),
        ("flow", times[2]),
        ("ode", times[2]),
        ("ode", times[3]),
        ("ode", times[4]),
    ]


@pytest.mark.parametrize("rule", STOCHASTIC)
def test_a_walk_with_the_noise_of_a_group_ends_where_its_rollout_does(rule):
    sde, noise = SdeConfig(rule=rule), Noise(False, 3, G)
    group = rollout(WORLD.velocity, "p", GRID, sde, noise, (2, 3))
    generators = noise.generators()
    everybody = torch.ones(G, GRID.steps, dtype=torch.bool)
    taking = StepNoise(sde, everybody, lambda: draw_normal(generators, (2, 3)))
    x_1 = noise.initial((2, 3))
    assert torch.equal(walk_to_end(WORLD.velocity, x_1, GRID.pairs(), noise=taking), group.x_0)
    plain = walk_to_end(WORLD.velocity, x_1, GRID.pairs())
    assert torch.equal(plain, sample_ode(WORLD.velocity, "p", GRID, x_1))
    assert not torch.equal(plain, group.x_0)


def test_steps_of_a_walk_hold_what_moved_the_samples():
    sde, x_t = SdeConfig(), torch.randn(G, 2, 3)
    is_noisy = torch.zeros(G, GRID.steps, dtype=torch.bool)
    is_noisy[1:3, 1] = is_noisy[:, 4] = True  # the last one leads into 0
    z = torch.randn(G, 2, 3)
    steps = list(walk(WORLD.velocity, x_t, GRID.pairs(), noise=StepNoise(sde, is_noisy, lambda: z)))
    for number, ((t, s), step) in enumerate(zip(GRID.pairs(), steps, strict=True)):
        assert torch.equal(step.v_t, WORLD.velocity(x_t, t))
        straight = x_t + (s - t) * step.v_t
        if number == 1:
            assert step.transition is not None
            by_rule = sde.transition(x_t, step.v_t, t, s)
            assert torch.equal(step.transition.mean, by_rule.mean)
            assert step.is_noisy.tolist() == [False, True, True, False]
            assert torch.equal(step.x_s[1:3], (by_rule.mean + by_rule.std * z)[1:3])
            assert torch.equal(step.x_s[[0, 3]], straight[[0, 3]])
        else:
            assert step.transition is None and not step.is_noisy.any()
            assert torch.equal(step.x_s, straight)
        x_t = step.x_s


def test_noise_is_drawn_at_every_step_but_the_last_whoever_takes_it():
    draws = []
    nobody = torch.zeros(G, GRID.steps, dtype=torch.bool)
    taking = StepNoise(SdeConfig(), nobody, lambda: draws.append(1) or torch.zeros(G, 2))
    walk_to_end(WORLD.velocity, torch.zeros(G, 2), GRID.pairs(), noise=taking)
    assert len(draws) == STEPS


def test_a_walk_of_no_steps_stays_where_it_is():
    x_t = torch.randn(2, 3)
    assert walk_to_end(WORLD.velocity, x_t, []) is x_t


def test_rollout_keeps_every_state_and_the_density_that_drew_it():
    world, grid = GaussianWorld(), shifted_grid(5)
    noise = Noise(True, 3, 4)
    group = rollout(world.velocity, "p", grid, SdeConfig(), noise, (2, 3))
    assert group.states.shape == (6, 4, 2, 3) and group.log_p.shape == (4, 4)
    assert torch.equal(group.states[0], noise.initial((2, 3)))
    for step in range(4):
        assert torch.equal(replay_step(world.velocity, group, step).log_p, group.log_p[step])
        part = torch.tensor([2, 0])
        again = replay_step(world.velocity, group, step, part).log_p
        assert torch.equal(again, group.log_p[step, part])


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_rollout_does_not_depend_on_the_batch_size(batch_size):
    world, grid, sde = GaussianWorld(), shifted_grid(5), SdeConfig()
    whole, parts = (
        rollout(world.velocity, "p", grid, sde, Noise(False, 3, 4), (2, 3), batch_size=size)
        for size in (None, batch_size)
    )
    assert torch.equal(whole.states, parts.states) and torch.equal(whole.log_p, parts.log_p)


def test_ode_rollout_has_no_density_and_equals_plain_sampling():
    world, grid = GaussianWorld(), shifted_grid(5)
    noise = Noise(False, 3, 4)
    group = rollout(world.velocity, "p", grid, SdeConfig(rule="ode"), noise, (2, 3))
    assert not group.stochastic.any() and torch.equal(group.log_p, torch.zeros(4, 4))
    plain = sample_ode(world.velocity, "p", grid, noise.initial((2, 3)), batch_size=3)
    assert torch.equal(group.x_0, plain)


def test_one_straight_step_lands_on_the_data_point():
    target = torch.tensor([[0.3, -2.0]])
    noise = torch.randn(1, 2)
    grid = TimeGrid((1.0, 0.4, 0.0))
    found = sample_ode(lambda x_t, t, example: noise - target, "", grid, noise)
    assert torch.allclose(found, target, atol=1e-6)
