"""The self-test passes correct gradients of any precision, catches wrong ones, changes nothing."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fakes import PROMPTS, Brightness, CancelAfter, ToyPolicy, toy_config

from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.noise import Noise, derive_seed
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import RULES, SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.loss_scale import LossScale
from chunk_grpo_core.train.batch_limit import BatchLimit
from chunk_grpo_core.train.self_test import THOROUGH, SelfTestFailed, self_test
from chunk_grpo_core.train.self_test import run as self_test_run
from chunk_grpo_core.train.self_test.cells import cells_of
from chunk_grpo_core.train.self_test.moves import Backward, Gradients, Point
from chunk_grpo_core.train.self_test.slopes import Slopes
from chunk_grpo_core.train.self_test.verdict import GradientsDiffer
from chunk_grpo_core.train.trainer import Trainer

GRID = shifted_grid(6, 2.0)
FINE, COARSE = 2e-3, 0.03


class Rounded(torch.autograd.Function):
    """What a layer in bfloat16 does to its output and to its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx, grad):
        return grad.bfloat16().float()


class Faulty(torch.autograd.Function):
    """The identity, with a gradient that somebody got wrong."""

    @staticmethod
    def forward(ctx, x, fault):
        ctx.fault = fault
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.fault(grad), None


class Layers(ToyPolicy):
    """A toy policy whose two layers pass through ``after``: layer name -> function."""

    def __init__(self, after=None, is_trained=False):
        super().__init__()
        self.after = after or {}
        if is_trained:
            generator = torch.Generator().manual_seed(1)
            for factor in self.adapter.parameters():
                factor.data += 0.1 * torch.randn(factor.shape, generator=generator)

    def _layer(self, name, x):
        return self.after.get(name, lambda y: y)(super()._layer(name, x))


def outcome(policy, *, sampler=None, sde=SdeConfig(), **options):  # noqa: B008 - frozen
    sampled = rollout(
        (sampler or policy).velocity, "warm", GRID, sde, Noise(True, 5, 4), policy.latent_shape
    )
    return self_test(policy.velocity, policy.adapter.parameters(), [sampled], **options)


@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"ode"}))
@pytest.mark.parametrize("is_trained", [False, True])
def test_exact_gradients_pass_the_fine_test(rule, is_trained):
    result = outcome(Layers(is_trained=is_trained), sde=SdeConfig(rule=rule))
    assert result.tolerance == FINE and result.error < FINE / 4
    assert result.ratio_error == 0.0


def rounded():
    return {"enter": Rounded.apply, "leave": Rounded.apply}


@pytest.mark.parametrize("is_trained", [False, True])
def test_gradients_of_a_model_in_bfloat16_pass_the_coarse_test(is_trained):
    result = outcome(Layers(rounded(), is_trained))
    assert COARSE < result.tolerance < 4 * COARSE and result.error < COARSE


def detached(x):
    return x.detach()


def faulty(fault):
    return lambda x: Faulty.apply(x, fault)


FAULTS = {
    "one layer is cut off": {"enter": detached},
    "one per cent too large": {"enter": faulty(lambda grad: 1.01 * grad)},
    "a part is missing": {"leave": faulty(lambda grad: grad * (torch.arange(64) > 3))},
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("is_trained", [False, True])
def test_wrong_gradients_are_caught(name, is_trained):
    with pytest.raises(SelfTestFailed, match=r"wrong.* autograd says .*self_test off"):
        outcome(Layers(FAULTS[name], is_trained))


@pytest.mark.parametrize("fault", [None, "one per cent too large"])
def test_a_move_is_shortened_until_its_curvature_is_small(monkeypatch, fault):
    """As of a small FLUX.2 with guidance, whose curvature is 2 % of the usual move's slope."""
    plain = Slopes.along

    def curved(slopes, cell, at, direction, factor=1.0):
        slope = plain(slopes, cell, at, direction, factor)
        return slope._replace(values=(1.0 - 0.022 * factor) * slope.values)

    monkeypatch.setattr(Slopes, "along", curved)
    if fault is None:
        outcome(Layers())
    else:
        with pytest.raises(SelfTestFailed, match=r"wrong.* autograd says "):
            outcome(Layers(FAULTS[fault]))


@pytest.mark.parametrize("fault", [detached, faulty(lambda grad: 0.8 * grad)])
def test_wrong_gradients_are_caught_in_bfloat16(fault):
    after = rounded() | {"enter": lambda x: Rounded.apply(fault(x))}
    with pytest.raises(SelfTestFailed, match="wrong") as caught:
        outcome(Layers(after))
    says_both = "autograd says that nothing depends" not in str(caught.value)
    assert ("in 32 bits the same test tells" in str(caught.value)) == says_both


def test_a_model_without_any_gradient_is_named():
    with pytest.raises(SelfTestFailed, match="no gradient goes through this model"):
        outcome(Layers({"enter": detached, "leave": detached}))


def test_a_model_that_answers_from_a_cache_is_named():
    policy, answers = ToyPolicy(), {}
    velocity = policy.velocity
    policy.velocity = lambda x, t, example: answers.setdefault((t, len(x)), velocity(x, t, example))
    with pytest.raises(SelfTestFailed, match="by 0.0 of its size; the LoRA has no effect"):
        outcome(policy)


def test_a_model_that_fails_is_named():
    with pytest.raises(SelfTestFailed, match="by nan of its size.* the model fails"):
        outcome(Layers({"leave": lambda x: x * torch.nan}), sampler=ToyPolicy())


def test_another_model_than_the_one_that_sampled_is_named():
    with pytest.raises(SelfTestFailed, match="not the one that sampled.*before any update"):
        outcome(ToyPolicy(seed=1), sampler=ToyPolicy(seed=0))


# The policy that sampled


def recorded(seed=5):
    policy = ToyPolicy()
    return policy, rollout(
        policy.velocity, "warm", GRID, SdeConfig(), Noise(True, seed, 4), policy.latent_shape
    )


FAR = max(map(str, range(50)), key=lambda text: derive_seed(text) % 1000)
"""A caption that the toy policy takes for quite another one."""
CHANGES = {
    "another caption": lambda v: lambda x, t, example: v(x, t, FAR),
    "another time": lambda v: lambda x, t, example: v(x, 0.9 * t, example),
    "a velocity 5 % larger": lambda v: lambda x, t, example: 1.05 * v(x, t, example),
}


@pytest.mark.parametrize("is_in_both", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_another_one_in_training_is_caught(change, is_in_both):
    policy, sampled = recorded()
    changed = CHANGES[change](policy.velocity)

    def velocity(x, t, example):
        return (changed if is_in_both or torch.is_grad_enabled() else policy.velocity)(
            x, t, example
        )

    with pytest.raises(SelfTestFailed, match="is not the one that sampled"):
        self_test(velocity, policy.adapter.parameters(), [sampled])


def one_step_off(step):
    def change(sampled):
        log_p = sampled.log_p.clone()
        log_p[step] += 1.0
        return {"log_p": log_p}

    return change


RECORDS = {
    "log-densities of another sample": lambda s: {"log_p": s.log_p.roll(1, 1)},
    "states of another sample": lambda s: {"states": s.states.roll(1, 1)},
    "log-densities of another step": lambda s: {"log_p": s.log_p.roll(1, 0)},
    **{f"a log-density + 1 at step {step}": one_step_off(step) for step in range(4)},
}


@pytest.mark.parametrize("name", RECORDS)
def test_wrong_records_are_caught(name):
    policy, sampled = recorded()
    wrong = replace(sampled, **RECORDS[name](sampled))
    with pytest.raises(SelfTestFailed, match="not the one that sampled|another step or sample"):
        self_test(policy.velocity, policy.adapter.parameters(), [wrong])


@pytest.mark.parametrize(("clip", "is_caught"), [(1e-5, True), (1e-3, False)])
def test_the_ratio_may_be_off_by_the_clip_range(clip, is_caught):
    policy, sampled = recorded()
    wrong = replace(sampled, log_p=sampled.log_p + 5e-4)
    options = {"clip": clip}
    if is_caught:
        with pytest.raises(SelfTestFailed, match="allowed 1.1e-05"):
            self_test(policy.velocity, policy.adapter.parameters(), [wrong], **options)
    else:
        result = self_test(policy.velocity, policy.adapter.parameters(), [wrong], **options)
        assert result.ratio_error == pytest.approx(5e-4, rel=0.01)


def test_the_thorough_form_replays_every_step():
    policy, sampled = recorded()
    log_p = sampled.log_p.clone()
    log_p[3, 3] += 1e-3  # the sample whose turn it is at this step; no cell of the standard form
    wrong = replace(sampled, log_p=log_p)
    parameters = policy.adapter.parameters()
    assert self_test(policy.velocity, parameters, [wrong]).cells == 2
    with pytest.raises(SelfTestFailed, match="not the one that sampled"):
        self_test(policy.velocity, parameters, [wrong], effort=THOROUGH)
    result = self_test(policy.velocity, parameters, [sampled], effort=THOROUGH)
    assert result.directions > 6 and result.error < FINE / 4


def test_nothing_is_changed():
    policy = Layers(is_trained=True)
    parameters = policy.adapter.parameters()
    parameters[0].grad = torch.ones_like(parameters[0])
    before, state = policy.adapter.state_dict(), torch.get_rng_state()
    outcome(policy)
    with pytest.raises(SelfTestFailed):
        outcome(Layers(FAULTS["one layer is cut off"]))
    with pytest.raises(Cancelled):
        outcome(policy, check_cancel=CancelAfter(3))
    after = policy.adapter.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.grad is None for p in parameters] == [False, True, True, True]
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))


def test_the_batch_is_small_and_no_larger_than_allowed():
    for allowed, expected in ((None, 2), (1, 1), (8, 2)):
        policy = ToyPolicy()
        sampled = rollout(
            policy.velocity, "warm", GRID, SdeConfig(), Noise(True, 5, 4), policy.latent_shape
        )
        policy.calls.clear()
        self_test(
            policy.velocity, policy.adapter.parameters(), [sampled], limit=BatchLimit(size=allowed)
        )
        assert set(policy.calls) == {expected} and len(policy.calls) <= 14


def test_only_steps_that_took_noise_are_used():
    policy, stochastic = ToyPolicy(), torch.zeros(4, 5, dtype=torch.bool)
    stochastic[2, 4] = True
    sampled = rollout(
        policy.velocity,
        "warm",
        GRID,
        SdeConfig(),
        Noise(True, 5, 4),
        policy.latent_shape,
        stochastic=stochastic,
    )
    assert self_test(policy.velocity, policy.adapter.parameters(), [sampled]).error < FINE


# In the trainer


def train(policy, **changes):
    config = toy_config(iterations=2, **changes)
    trainer = Trainer(policy, Brightness(), PROMPTS, config)
    trainer.train()
    return policy.adapter.state_dict()


def test_a_training_tests_once_before_its_first_update(monkeypatch, caplog):
    seen = []

    def watched(velocity, parameters, *more, **options):
        seen.append([p.detach().clone() for p in parameters])
        return self_test(velocity, parameters, *more, **options)

    monkeypatch.setattr(self_test_run, "self_test", watched)
    with caplog.at_level(logging.INFO):
        on = train(ToyPolicy())
    fresh = ToyPolicy().adapter.parameters()
    assert len(seen) == 1
    assert all(torch.equal(a, b) for a, b in zip(seen[0], fresh, strict=True))
    assert "self-test: SelfTest(derivative=" in caplog.text
    off = train(ToyPolicy(), self_test=False)
    assert len(seen) == 1
    assert all(torch.equal(on[name], off[name]) for name in on)


def test_a_training_with_wrong_gradients_does_not_begin():
    policy = Layers(FAULTS["one layer is cut off"])
    before = policy.adapter.state_dict()
    with pytest.raises(SelfTestFailed):
        train(policy)
    after = policy.adapter.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    train(Layers(FAULTS["one layer is cut off"]), self_test=False)


@pytest.mark.parametrize(("fine", "failures"), [(True, 1), (False, 1), (False, 2)])
def test_a_gradient_that_rounding_may_have_falsified_is_measured_in_another_place(
    fine, failures, monkeypatch, caplog
):
    turns = []

    def doubtful(*words, turn, **options):
        turns.append(turn)
        if len(turns) <= failures:
            error = GradientsDiffer("self-test: wrong")
            error.is_fine = fine
            raise error

    monkeypatch.setattr(self_test_run, "self_test", doubtful)
    if fine or failures == 2:
        with pytest.raises(SelfTestFailed):
            train(ToyPolicy())
    else:
        train(ToyPolicy())
    assert turns == ([0] if fine else [0, 1])
    assert ("measured again elsewhere" in caplog.text) == (not fine)


def test_another_turn_looks_at_other_cells():
    policy = ToyPolicy()
    groups = [
        rollout(
            policy.velocity,
            "warm",
            shifted_grid(6),
            SdeConfig(),
            Noise(True, seed, 6),
            policy.latent_shape,
        )
        for seed in range(4)
    ]
    first, second = (cells_of(groups, 2, 2, turn) for turn in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert one.trajectory is not other.trajectory
        assert one.step != other.step or not torch.equal(one.samples, other.samples)


# Gradients in float16


class Half(torch.autograd.Function):
    """A model that computes in float16: gradients below 6e-8 vanish in it."""

    @staticmethod
    def forward(ctx, x):
        return x.half().float()

    @staticmethod
    def backward(ctx, grad):
        return grad.half().float()


def half_gradient(is_scaled, size=2**17):
    """Gradient of a mean over a large latent, as a log-density is, through float16."""
    weight = torch.nn.Parameter(torch.tensor(0.5))
    scale = LossScale([weight], (size,)) if is_scaled else lambda v: v
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
    loss = 0.01 * (scale(Half.apply(weight * torch.ones(size))) * noise).mean()
    return torch.autograd.grad(loss, weight)[0], 0.01 * noise.mean()


def test_small_gradients_survive_float16():
    (scaled, exact), (plain, _) = half_gradient(True), half_gradient(False)
    assert abs(float(scaled / exact) - 1) < 1e-3
    assert abs(float(plain / exact) - 1) > 0.1


def test_scaling_changes_no_bit_in_float32():
    gradients = []
    for is_scaled in (False, True):
        policy = ToyPolicy()
        parameters = policy.adapter.parameters()
        scale = LossScale(parameters, policy.latent_shape) if is_scaled else lambda v: v
        x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
        scale(policy.velocity(x, 0.5, "warm")).square().mean().backward()
        gradients.append([p.grad for p in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_self_test_may_be_switched_on_a_resume():
    config = toy_config()
    assert replace(config, self_test=False).flat()["self_test"] is False
    assert type(config).of({**config.flat(), "self_test": False}).self_test is False


class Hidden:
    """Stands for a model that feels a move less than its rounding, and fails at a very long one."""

    def __init__(self):
        self.lengths = []

    def moved(self, cell, direction, h):
        self.lengths.append(abs(h))
        generator = torch.Generator().manual_seed(len(self.lengths))
        noise = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
        v_t = torch.ones_like(noise) + 2e-3 * noise
        return Point(v_t, v_t) if abs(h) < 1e3 else Point(v_t * torch.nan, v_t * torch.nan)


def test_moves_that_rounding_hides_do_not_make_later_ones_longer():
    model, ones = Hidden(), torch.ones(2, 4, 8, 8, dtype=torch.float64)
    gradient = torch.full((3,), 1e-2)
    at = Backward(Gradients([gradient]), Point(ones, ones), ones.clone(), torch.zeros(2))
    direction = {0: gradient / gradient.square().sum()}
    slopes = Slopes(model, is_fine=False, rounding=2e-3)
    cell = SimpleNamespace(velocity_in_std=1.0)
    for factor in (1.0, 0.5, 0.25, 2.0):
        start = len(model.lengths)
        slope = slopes.along(cell, at, direction, factor)
        assert slope.values.isfinite().all()
        assert slope.h == model.lengths[start] == pytest.approx(0.01 * factor)
        assert slope.noise == pytest.approx(2e-3 / (2**0.5 * slope.h))
