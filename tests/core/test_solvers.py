"""ODE solvers against exact flows and diffusers; rollouts with noise at some steps only.

Legend: G samples in a group, N steps.
"""

from __future__ import annotations

import math

import pytest
import torch
from environment import package
from fakes import Brightness, GaussianWorld, ToyPolicy

from chunk_grpo_core.measure.evaluate import evaluate
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.replay import replay_step
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import ODE, RULES, SdeConfig
from chunk_grpo_core.method.schedule import TimeGrid, flux_shift, shifted_grid
from chunk_grpo_core.method.solvers import SOLVERS
from chunk_grpo_core.method.walk import sample_ode

WORLD = GaussianWorld()
GRID = shifted_grid(9)
G, STEPS = 6, GRID.trainable_steps
FLOW = SdeConfig()
STOCHASTIC = sorted(set(RULES) - {"ode"})


def mask(seed=0):
    """Any steps of any samples, (G, N - 1)."""
    return torch.rand(G, STEPS, generator=torch.Generator().manual_seed(seed)) < 0.5


def group_of(stochastic, *, velocity=WORLD.velocity, sde=FLOW, solver="euler", **options):
    noise = Noise(False, 3, G)
    options = {"stochastic": stochastic, "solver": solver, **options}
    return rollout(velocity, "p", GRID, sde, noise, (2, 3), **options)


def bent(x_t, t, example):
    """A velocity that is linear in nothing."""
    return torch.sin(2.0 * x_t + t) - x_t.roll(1, -1) * t


# Solvers


@pytest.mark.parametrize(("solver", "low", "high"), [("euler", 0.95, 1.05), ("dpm2", 1.65, 2.1)])
@pytest.mark.parametrize("world", [GaussianWorld(0.8, 0.5), GaussianWorld(-1.0, 1.3)])
def test_global_error_falls_with_the_order_of_the_solver(world, solver, low, high):
    """The exact flow keeps every sample at its quantile: x_0 = mean + std x_1."""
    x_1 = torch.linspace(-2.0, 2.0, 9)[:, None]
    errors = []
    for steps in (64, 512):
        x_0 = sample_ode(world.velocity, "", shifted_grid(steps, 1.0), x_1, solver=solver)
        errors.append(float((x_0 - world.mean - world.std * x_1).abs().max()))
    assert low < math.log(errors[0] / errors[1], 8) < high


@pytest.mark.parametrize("steps", [2, 6, 20])
def test_dpm2_is_the_multistep_solver_of_diffusers(steps):
    diffusers = package("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    scheduler.set_timesteps(steps)
    x_1 = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    x_t = x_1
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x_t = scheduler.step(bent(x_t, float(sigma), ""), timestep, x_t).prev_sample
    found = sample_ode(bent, "", TimeGrid.of(scheduler.sigmas), x_1, solver="dpm2")
    assert torch.allclose(found, x_t, atol=1e-5)
    if steps > 2:
        assert not torch.allclose(found, sample_ode(bent, "", GRID, x_1), atol=1e-2)


def test_dpm2_has_nothing_to_extrapolate_in_two_steps_from_pure_noise():
    x_1 = torch.randn(4, 5)
    grid = shifted_grid(2)
    euler, dpm2 = (sample_ode(bent, "", grid, x_1, solver=solver) for solver in SOLVERS)
    assert torch.equal(euler, dpm2)


def test_evaluation_samples_with_the_solver_it_is_told():
    means = [
        evaluate(ToyPolicy(), Brightness(), ["a"], GRID, seeds=2, **options).rewards
        for options in ({}, {"solver": "euler"}, {"solver": "dpm2"})
    ]
    assert torch.equal(means[0], means[1]) and not torch.equal(means[0], means[2])


def test_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="solver is 'heun'; it must be one of euler, dpm2"):
        sample_ode(bent, "", GRID, torch.zeros(1, 2), solver="heun")
    with pytest.raises(ValueError, match="solver is 'heun'"):
        group_of(None, solver="heun")


# Rollouts with noise at some steps only


@pytest.mark.parametrize("rule", STOCHASTIC)
def test_noise_everywhere_is_the_default(rule):
    sde = SdeConfig(rule=rule)
    plain = group_of(None, sde=sde)
    every = group_of(torch.ones(G, STEPS, dtype=torch.bool), sde=sde, solver="dpm2")
    assert torch.equal(plain.states, every.states) and torch.equal(plain.log_p, every.log_p)
    assert every.stochastic.shape == plain.log_p.shape and every.stochastic.all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_noise_nowhere_is_plain_ode_sampling(solver):
    group = group_of(torch.zeros(G, STEPS, dtype=torch.bool), velocity=bent, solver=solver)
    plain = sample_ode(bent, "p", GRID, group.states[0], solver=solver, batch_size=4)
    assert torch.equal(group.x_0, plain) and not group.log_p.any()
    by_rule = group_of(None, velocity=bent, sde=SdeConfig(rule="ode"), solver=solver)
    assert torch.equal(group.states, by_rule.states)


@pytest.mark.parametrize("rule", STOCHASTIC)
def test_each_step_takes_its_own_kind_of_update(rule):
    stochastic, sde = mask(), SdeConfig(rule=rule)
    group = group_of(stochastic, sde=sde)
    assert torch.equal(group.stochastic, stochastic.T)
    assert not group.log_p[~stochastic.T].any() and group.log_p.isfinite().all()
    for step, (t, s) in enumerate(GRID.pairs()[:-1]):
        x_t, x_s = group.states[step], group.states[step + 1]
        straight = ODE.transition(x_t, WORLD.velocity(x_t, t), t, s).mean
        found = (x_s == straight).flatten(1).all(1)
        assert torch.equal(found, ~stochastic[:, step])
        noisy = stochastic[:, step].nonzero().flatten()
        log_p = replay_step(WORLD.velocity, group, step, noisy).log_p
        assert torch.equal(log_p, group.log_p[step, noisy])


def noise_drawn(group, step):
    """What was drawn at a step: (x_s - mean) / std."""
    t, s = GRID.pairs()[step]
    x_t = group.states[step]
    transition = group.sde.transition(x_t, WORLD.velocity(x_t, t), t, s)
    return (group.states[step + 1] - transition.mean) / transition.std


def test_noise_of_a_step_does_not_depend_on_where_else_there_is_noise():
    one, two = mask(1), mask(2)
    groups = [group_of(stochastic, sde=SdeConfig(rule="dance")) for stochastic in (one, two)]
    both = one & two
    assert both.any(1).all() and not torch.equal(groups[0].x_0, groups[1].x_0)
    for step in range(STEPS):
        first, second = (noise_drawn(group, step)[both[:, step]] for group in groups)
        assert torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("solver", SOLVERS)
def test_mixed_rollout_does_not_depend_on_the_batch_size(solver, batch_size):
    whole = group_of(mask(), solver=solver)
    parts = group_of(mask(), solver=solver, batch_size=batch_size)
    assert torch.equal(whole.states, parts.states) and torch.equal(whole.log_p, parts.log_p)


@pytest.mark.parametrize("solver", SOLVERS)
def test_mixed_rollout_calls_the_model_once_for_each_step(solver):
    policy = ToyPolicy()
    noise = Noise(True, 0, G)
    options = {"stochastic": mask(), "solver": solver}
    rollout(policy.velocity, "p", GRID, SdeConfig(), noise, policy.latent_shape, **options)
    # What all samples have in common before the first noise is computed once, in four rows.
    alike = int(mask().any(0).nonzero()[0]) + 1
    assert policy.calls == [4] * alike + [G] * (GRID.steps - alike)


def test_dpm2_looks_back_only_over_steps_without_noise():
    stochastic = torch.zeros(G, STEPS, dtype=torch.bool)
    stochastic[: G // 2, 3] = True
    group = group_of(stochastic, velocity=bent, solver="dpm2")
    is_euler = []
    for step, (t, s) in enumerate(GRID.pairs()):
        x_t = group.states[step]
        straight = ODE.transition(x_t, bent(x_t, t, ""), t, s).mean
        is_euler.append((group.states[step + 1] == straight).flatten(1).all(1).tolist())
    first, other = [steps[0] for steps in is_euler], [steps[-1] for steps in is_euler]
    # From t = 1, the one after it, and into 0; for the first half also around the noise.
    assert other == [True, True, *[False] * 6, True]
    assert first == [True, True, False, False, True, *[False] * 3, True]
    assert all(steps == [steps[0]] * (G // 2) + [steps[-1]] * (G // 2) for steps in is_euler)


def test_deterministic_steps_cannot_be_trained_on():
    stochastic = torch.ones(G, STEPS, dtype=torch.bool)
    stochastic[2, 5] = False
    group = group_of(stochastic)
    others = torch.tensor([0, 1, 3])
    assert torch.equal(replay_step(WORLD.velocity, group, 5, others).log_p, group.log_p[5, others])
    for samples in (torch.tensor([1, 2]), slice(None)):
        with pytest.raises(ValueError, match="step 5 was deterministic .* took noise"):
            replay_step(WORLD.velocity, group, 5, samples)


@pytest.mark.parametrize(
    ("stochastic", "sde", "message"),
    [
        (torch.ones(STEPS, G).bool(), SdeConfig(), r"shape \(8, 6\).* \(G, N - 1\) = \(6, 8\)"),
        (torch.ones(G, STEPS), SdeConfig(), "torch.float32 .*; it must be bool"),
        (torch.ones(G, STEPS).bool(), SdeConfig(rule="ode"), "sde is ode .* can be stochastic"),
        (torch.ones(G, STEPS).bool(), SdeConfig(eta=0.0), "sde is flow with eta 0.0"),
    ],
)
def test_noise_that_cannot_be_is_refused(stochastic, sde, message):
    with pytest.raises(ValueError, match=message):
        group_of(stochastic, sde=sde)


# FLUX's grid


def reference_flux_grid(steps, tokens):
    """Written as in the reference code: linear mu, e^mu / (e^mu + (1 / t - 1))."""
    mu = 0.5 * (4096 - tokens) / 3840 + 1.15 * (tokens - 256) / 3840
    levels = [1.0 - i / steps for i in range(steps)]
    return [math.exp(mu) / (math.exp(mu) + (1.0 / t - 1.0)) for t in levels] + [0.0]


@pytest.mark.parametrize("steps", [2, 9, 28])
@pytest.mark.parametrize("tokens", [16, 256, 1024, 2025, 4096, 6000])
def test_flux_shift_makes_the_grid_of_flux(steps, tokens):
    grid = shifted_grid(steps, flux_shift(tokens))
    assert grid.sigmas == pytest.approx(reference_flux_grid(steps, tokens), rel=1e-12)


def test_flux_shift_at_its_two_anchors():
    assert flux_shift(256) == pytest.approx(math.exp(0.5))
    assert flux_shift(4096) == pytest.approx(math.exp(1.15))
    assert flux_shift(256, base_shift=0.0) == 1.0  # the linear grid
    with pytest.raises(ValueError, match="tokens is 0; a picture has 1 image token or more"):
        flux_shift(0)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_flux_grid_is_that_of_diffusers(tokens):
    diffusers = package("diffusers")
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    levels = [1.0 - i / 12 for i in range(12)]
    scheduler.set_timesteps(sigmas=levels, mu=calculate_shift(tokens))
    grid = shifted_grid(12, flux_shift(tokens))
    assert grid.sigmas == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
