"""One reverse step against closed forms, torch.distributions and the official formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fakes import GaussianWorld
from torch.distributions import Normal

from chunk_grpo_core.method.replay import replay_step
from chunk_grpo_core.method.rollout import Noise, rollout, sample_ode
from chunk_grpo_core.method.rules import (
    KEEPS_MARGINALS,
    RULES,
    SdeConfig,
    Transition,
    gaussian_log_p,
    ode_step,
    sample_step,
)
from chunk_grpo_core.method.schedule import TimeGrid, shifted_grid

GOLDEN = Path(__file__).parent.parent / "golden" / "sde_golden.json"
ENTRIES = json.loads(GOLDEN.read_text(encoding="utf-8"))
STOCHASTIC = sorted(set(RULES) - {"ode"})
KEEPERS = sorted(KEEPS_MARGINALS - {"ode"})
RULES_AND_ETAS = [("ode", 0.0)] + [(rule, eta) for rule in KEEPERS for eta in (0.3, 0.7, 1.0)]


def final_moments(world, stochastic, steps, is_noisy=lambda index, steps: True):
    """Mean and variance of x_0, exactly: each step is affine in x_t, so moments just propagate."""
    mean, variance = torch.zeros(1), 1.0
    for index, (t, s) in enumerate(shifted_grid(steps).pairs()):
        sde = stochastic if is_noisy(index, steps) else SdeConfig(rule="ode")
        here = sde.transition(mean, world.velocity(mean, t), t, s)
        beside = sde.transition(mean + 1.0, world.velocity(mean + 1.0, t), t, s)
        variance = float(beside.mean - here.mean) ** 2 * variance + here.std**2
        mean = here.mean
    return float(mean), variance


@pytest.mark.parametrize(("rule", "eta"), RULES_AND_ETAS)
@pytest.mark.parametrize("world", [GaussianWorld(0.8, 0.5), GaussianWorld(-1.0, 1.3)])
def test_rule_keeps_the_marginals_ever_better_with_more_steps(rule, eta, world):
    errors = []
    for steps in (32, 64, 128, 256):
        mean, variance = final_moments(world, SdeConfig(rule=rule, eta=eta), steps)
        assert mean == pytest.approx(world.mean, abs=1e-4)
        errors.append(abs(variance / world.std**2 - 1.0))
    assert all(finer < 0.7 * coarser for coarser, finer in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.03


NOISY_HALVES = {
    "last": lambda index, steps: index >= steps / 2,
    "middle": lambda index, steps: steps / 4 <= index < 3 * steps / 4,
    "first": lambda index, steps: index < steps / 2,
    "every second": lambda index, steps: index % 2 == 0,
}


@pytest.mark.parametrize("half", NOISY_HALVES)
@pytest.mark.parametrize(("rule", "eta"), RULES_AND_ETAS[1:])
@pytest.mark.parametrize("world", [GaussianWorld(0.8, 0.5), GaussianWorld(-1.0, 1.3)])
def test_rule_keeps_the_marginals_also_where_half_the_steps_follow_the_ode(rule, eta, world, half):
    errors = []
    for steps in (32, 64, 128, 256):
        sde = SdeConfig(rule=rule, eta=eta)
        mean, variance = final_moments(world, sde, steps, NOISY_HALVES[half])
        assert mean == pytest.approx(world.mean, abs=1e-4)
        errors.append(abs(variance / world.std**2 - 1.0))
    assert errors[-1] < min(0.03, errors[0])
    if rule == "dance" or half in ("last", "middle"):  # else see the next test
        assert all(finer < 0.7 * other for other, finer in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_flow_rule_widens_the_variance_in_the_step_from_pure_noise(eta):
    """By eta^4 / 4, however fine the steps: later noise forgets it, the ODE does not."""
    world, sde = GaussianWorld(0.8, 0.5), SdeConfig(rule="flow", eta=eta)
    _, variance = final_moments(world, sde, 2048, lambda index, steps: index == 0)
    assert variance / world.std**2 - 1.0 == pytest.approx(eta**4 / 4.0, abs=0.004)


@pytest.mark.slow
@pytest.mark.parametrize(("eta", "limit"), [(0.3, 0.05), (0.7, 0.25), (1.0, 0.45)])
def test_cps_does_not_keep_the_marginals_however_fine_the_steps(eta, limit):
    world = GaussianWorld(0.8, 0.5)
    losses = []
    for steps in (64, 1024, 4096):
        mean, variance = final_moments(world, SdeConfig(rule="cps", eta=eta), steps)
        assert mean == pytest.approx(world.mean, abs=1e-3)
        losses.append(1.0 - variance / world.std**2)
    assert losses[-1] > limit  # the loss of variance has a limit, and it is not zero
    assert losses[1] - losses[2] < 0.15 * losses[2]


@pytest.mark.parametrize(("rule", "eta"), RULES_AND_ETAS)
def test_rollouts_have_the_moments_of_the_data(rule, eta):
    world, sde = GaussianWorld(), SdeConfig(rule=rule, eta=eta)
    noise = Noise(False, 1, 24)
    group = rollout(world.velocity, "", shifted_grid(64), sde, noise, (512,))
    assert float(group.x_0.mean()) == pytest.approx(world.mean, abs=0.02)
    _, variance = final_moments(world, sde, 64)  # what is left is chance, not the step size
    assert float(group.x_0.var()) == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("rule", STOCHASTIC)
def test_more_noise_means_wider_steps_and_no_noise_means_ode(rule):
    x_t, v_t = torch.randn(2, 3), torch.randn(2, 3)
    wide, narrow, still = (
        SdeConfig(rule=rule, eta=eta).transition(x_t, v_t, 0.8, 0.6) for eta in (0.9, 0.3, 0.0)
    )
    assert wide.std > 2 * narrow.std > still.std == 0.0
    assert torch.allclose(still.mean, ode_step(x_t, v_t, 0.8, 0.6).mean)
    assert not SdeConfig(rule=rule, eta=0.0).is_stochastic


@pytest.mark.parametrize("rule", sorted(RULES))
def test_last_step_is_deterministic_whatever_the_rule(rule):
    x_t, v_t = torch.randn(2, 3), torch.randn(2, 3)
    last = SdeConfig(rule=rule, eta=0.7).transition(x_t, v_t, 0.25, 0.0)
    assert last.std == 0.0 and torch.equal(last.mean, x_t - 0.25 * v_t)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.95), (0.9, 0.8), (0.5, 0.3), (0.1, 0.05)])
@pytest.mark.parametrize("eta", [0.1, 0.7, 1.5])
def test_flow_rule_is_the_drift_of_flow_grpo(t, s, eta):
    x_t, v_t = torch.randn(2, 3, dtype=torch.float64).float(), torch.randn(2, 3)
    step = SdeConfig(rule="flow", eta=eta).transition(x_t, v_t, t, s)
    sigma = math.sqrt(t / (1 - (s if t == 1.0 else t))) * eta
    # The score of N((1 - t) x_0, t^2) with the x_0 that the velocity implies.
    x_0 = x_t.double() - t * v_t.double()
    score = ((1 - t) * x_0 - x_t.double()) / t**2
    drift = v_t.double() - 0.5 * sigma**2 * score
    assert torch.allclose(step.mean.double(), x_t.double() + drift * (s - t), atol=1e-5, rtol=1e-5)
    assert step.std == pytest.approx(sigma * math.sqrt(t - s))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"T{e['T']}-{e['index']}")
def test_flow_and_dance_rules_equal_the_official_ones(entry):
    index, sigmas = entry["index"], entry["sigmas"]
    x_t, v_t, x_s = (torch.tensor(entry[key]) for key in ("x", "v", "next"))
    t, s = sigmas[index], sigmas[index + 1]
    step = SdeConfig(rule="flow", eta=entry["eta"]).transition(x_t, v_t, t, s)
    assert gaussian_log_p(x_s, step).tolist() == pytest.approx(entry["logp_flow"], rel=1e-5)
    dance = SdeConfig(rule="dance", eta=entry["eta"]).transition(x_t, v_t, t, s)
    assert gaussian_log_p(x_s, dance).tolist() == pytest.approx(entry["logp_dance"], rel=1e-5)
    x_0 = ode_step(x_t, v_t, t, 0.0).mean
    assert torch.allclose(x_0, torch.tensor(entry["x0"]), rtol=1e-5, atol=1e-6)
    grid = shifted_grid(entry["T"], entry["shift"])
    assert grid.sigmas == pytest.approx(sigmas, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 5), (3, 4, 2, 2)])
@pytest.mark.parametrize("std", [1e-3, 0.2, 3.0])
def test_log_p_is_the_mean_of_normal_log_densities(shape, std):
    mean, noise = torch.randn(shape), torch.randn(shape)
    step = Transition(mean, std)
    x_s = sample_step(step, noise)
    expected = Normal(mean.double(), std).log_prob(x_s.double()).flatten(1).mean(1)
    assert torch.allclose(gaussian_log_p(x_s, step).double(), expected, rtol=1e-4, atol=1e-4)


def test_deterministic_step_has_no_density():
    with pytest.raises(ValueError, match="deterministic step has no log-density"):
        gaussian_log_p(torch.zeros(1, 2), Transition(torch.zeros(1, 2), 0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "flwo"}, "sde.rule is 'flwo'; it must be one of .*flow"),
        ({"eta": -0.1}, "sde.eta is -0.1; it must be 0 or more"),
        ({"eta": math.nan}, "sde.eta is nan"),
        ({"rule": "cps", "eta": 1.2}, r"sde.eta is 1.2; with the rule cps it must be in \[0, 1\]"),
    ],
)
def test_bad_sde_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SdeConfig(**settings)


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
    found = sample_ode(lambda x_t, t, prompt: noise - target, "", grid, noise)
    assert torch.allclose(found, target, atol=1e-6)
