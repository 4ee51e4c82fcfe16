"""Rules of a step against closed forms, torch.distributions, papers and official code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fakes import GaussianWorld
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import (
    ODE,
    RULES,
    Coefficients,
    SdeConfig,
    Transition,
    gaussian_log_p,
    sample_step,
)
from chunk_grpo_core.method.schedule import flux_shift, shifted_grid

GOLDEN = Path(__file__).parent.parent / "golden" / "sde_golden.json"
NOTATION = (Path(__file__).parents[2] / "docs" / "notation.md").read_text(encoding="utf-8")
ENTRIES = json.loads(GOLDEN.read_text(encoding="utf-8"))
STOCHASTIC = sorted(set(RULES) - {"ode"})
KEEPERS = ["dance", "flow"]
"""Rules with noise whose samples keep the flow's distribution as steps get finer; ``cps`` is none:
with the exact velocity of a Gaussian its samples are too narrow."""
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


def test_the_table_of_variances_in_the_notation_is_what_the_rules_give():
    table = NOTATION.partition("<!-- variance: start -->")[2].partition("<!-- variance: end -->")[0]
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line
    ]
    counts = [int(cell.removesuffix(" steps")) for cell in header[1:]]
    assert counts == [5, 9, 17, 50, 1000] and len(rows) == 5
    world = GaussianWorld(0.8, 0.5)
    for name, *cells in rows:
        rule, _, eta = name.partition(", ")
        sde = SdeConfig(rule=rule, eta=float(eta or 0))
        found = [final_moments(world, sde, steps)[1] / world.std**2 for steps in counts]
        assert [float(cell) for cell in cells] == pytest.approx(found, abs=6e-4), name


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
    assert torch.allclose(still.mean, ODE.transition(x_t, v_t, 0.8, 0.6).mean)
    assert not SdeConfig(rule=rule, eta=0.0).is_stochastic


@pytest.mark.parametrize("rule", sorted(RULES))
def test_last_step_is_deterministic_whatever_the_rule(rule):
    x_t, v_t = torch.randn(2, 3), torch.randn(2, 3)
    last = SdeConfig(rule=rule, eta=0.7).transition(x_t, v_t, 0.25, 0.0)
    assert last.std == 0.0 and torch.equal(last.mean, x_t - 0.25 * v_t)


def flow_of_the_paper(x_t, v_t, t, s, eta):
    """Drift and noise of Flow-GRPO's SDE, the score as that of N((1 - t) x_0, t^2)."""
    sigma = eta * math.sqrt(t / (1.0 - (s if t == 1.0 else t)))
    score = ((1.0 - t) * (x_t - t * v_t) - x_t) / t**2
    return x_t + (v_t - 0.5 * sigma**2 * score) * (s - t), sigma * math.sqrt(t - s)


def dance_of_the_paper(x_t, v_t, t, s, eta):
    """The same with a constant noise level."""
    x_0 = x_t - t * v_t
    score = -(x_t - (1.0 - t) * x_0) / t**2
    return x_t + (v_t - 0.5 * eta**2 * score) * (s - t), eta * math.sqrt(t - s)


def cps_of_the_paper(x_t, v_t, t, s, eta):
    """Predicted data and noise, mixed anew at the level s."""
    x_0, eps = x_t - t * v_t, x_t + (1.0 - t) * v_t
    std = s * math.sin(eta * math.pi / 2.0)
    return (1.0 - s) * x_0 + math.sqrt(s**2 - std**2) * eps, std


PAPERS = {
    "flow": flow_of_the_paper,
    "dance": dance_of_the_paper,
    "cps": cps_of_the_paper,
    "ode": lambda x_t, v_t, t, s, eta: (x_t + (s - t) * v_t, 0.0),
}


@pytest.mark.parametrize("rule", sorted(RULES))
@given(
    x_t=st.floats(-5.0, 5.0),
    v_t=st.floats(-5.0, 5.0),
    t=st.sampled_from([1.0]) | st.floats(0.02, 0.979),  # between: test_first_sigma.py
    share=st.floats(0.01, 0.99),
    eta=st.floats(0.0, 1.0),
)
def test_three_numbers_of_a_rule_are_the_formulas_of_its_paper(rule, x_t, v_t, t, share, eta):
    s = share * t
    a, b, std = RULES[rule](t, s, eta)
    mean, expected = PAPERS[rule](x_t, v_t, t, s, eta)
    size = 1.0 + abs(a) + abs(b)
    assert a * x_t + b * v_t == pytest.approx(mean, rel=1e-9, abs=1e-9 * size)
    assert std == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.95), (0.5, 0.3), (0.25, 0.0)])
def test_transition_puts_state_and_velocity_into_the_three_numbers(rule, t, s):
    x_t, v_t, sde = torch.randn(2, 3), torch.randn(2, 3), SdeConfig(rule=rule)
    a, b, std = sde.coefficients(t, s)
    step = sde.transition(x_t.double(), v_t, t, s)
    assert step.mean.dtype == torch.float32 and torch.equal(step.mean, a * x_t + b * v_t)
    assert step.std == std == sde.std(t, s)


def test_a_new_rule_is_one_function_and_one_line(monkeypatch):
    monkeypatch.setitem(RULES, "drift", lambda t, s, eta: Coefficients(0.9, s - t, eta * s))
    sde, world, grid = SdeConfig(rule="drift", eta=0.5), GaussianWorld(), shifted_grid(5)
    group = rollout(world.velocity, "p", grid, sde, Noise(False, 3, 4), (2, 3))
    t, s = grid.pairs()[1]
    x_t = group.states[1]
    step = Transition(0.9 * x_t + (s - t) * world.velocity(x_t, t), 0.5 * s)
    assert torch.allclose(group.log_p[1], gaussian_log_p(group.states[2], step))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"T{e['T']}-{e['index']}")
def test_flow_and_dance_rules_equal_the_official_ones(entry):
    index, sigmas = entry["index"], entry["sigmas"]
    x_t, v_t, x_s = (torch.tensor(entry[key]) for key in ("x", "v", "next"))
    t, s = sigmas[index], sigmas[index + 1]
    step = SdeConfig(rule="flow", eta=entry["eta"]).transition(x_t, v_t, t, s)
    assert gaussian_log_p(x_s, step).tolist() == pytest.approx(entry["logp_flow"], rel=1e-5)
    dance = SdeConfig(rule="dance", eta=entry["eta"]).transition(x_t, v_t, t, s)
    assert gaussian_log_p(x_s, dance).tolist() == pytest.approx(entry["logp_dance"], rel=1e-5)
    x_0 = ODE.transition(x_t, v_t, t, 0.0).mean
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


def test_a_log_ratio_of_cps_is_that_of_flow_grpo_over_twice_the_variance():
    """Their log-density of cps is -(x_s - mean)^2, ours that of the Gaussian."""
    sde, grid = SdeConfig(rule="cps", eta=0.8), shifted_grid(6, flux_shift(1024))
    factors = []
    for t, s in grid.pairs()[:-1]:
        x_t, old_v, new_v, noise = torch.randn(4, 2, 16).unbind()
        old, new = sde.transition(x_t, old_v, t, s), sde.transition(x_t, new_v, t, s)
        x_s = sample_step(old, noise)
        theirs = ((x_s - old.mean).square() - (x_s - new.mean).square()).mean(1)
        ours = gaussian_log_p(x_s, new) - gaussian_log_p(x_s, old)
        factors.append(1.0 / (2.0 * old.std**2))
        assert torch.allclose(ours, factors[-1] * theirs, rtol=1e-4, atol=1e-5)
    assert (factors[0], factors[-1]) == pytest.approx((0.68, 7.4), rel=0.01)  # docs/paper_index.md


def test_deterministic_step_has_no_density():
    with pytest.raises(ValueError, match="deterministic step has no log-density"):
        gaussian_log_p(torch.zeros(1, 2), Transition(torch.zeros(1, 2), 0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "flwo"}, "sde.rule is 'flwo'; it must be one of .*flow"),
        ({"eta": -0.1}, "sde.eta is -0.1; it must be a number from 0 to 2"),
        ({"eta": math.nan}, "sde.eta is nan"),
        ({"rule": "cps", "eta": 1.2}, r"sde.eta is 1.2; with the rule cps it must be in \[0, 1\]"),
    ],
)
def test_bad_sde_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SdeConfig(**settings)
