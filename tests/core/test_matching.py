"""The forward form: losses against loops by hand, a Gaussian world whose optimum is known, memory.

Legend: G samples in a group, K times.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fakes import GaussianWorld, MixingPolicy, ToyPolicy
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.memory import load_policy, saved_bytes
from chunk_grpo_core.method.matching import (
    OBJECTIVES,
    ForwardConfig,
    MatchingTerms,
    clipped_advantages,
    matching_loss,
)
from chunk_grpo_core.method.matching_stream import (
    MatchingTask,
    accumulate_matching,
    matching_batches,
    with_old_policy,
    with_reference_velocity,
)
from chunk_grpo_core.method.matching_times import TIMES, WEIGHTS, NoisedTimes, draw_times
from chunk_grpo_core.method.policy import base_model
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.method.stream import Stream
from chunk_grpo_core.prompts.example import Example

GROUP, SHAPE = 5, ToyPolicy.latent_shape
LEVELS = shifted_grid(6, 2.0).sigmas[:-1]
ADVANTAGES = torch.tensor([1.5, -0.5, 0.0, 0.7, -1.7])


def moved(policy, seed, size=0.2):
    """The policy with other weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in policy.adapter.parameters():
            factor.add_(size * torch.randn(factor.shape, generator=generator))
    return policy


def task_of(config, advantages=ADVANTAGES, seed=3):
    x_0 = torch.randn(len(advantages), *SHAPE, generator=torch.Generator().manual_seed(seed))
    noised = draw_times(config, LEVELS, SHAPE, range(len(advantages)), seed)
    return MatchingTask(Example.of("warm"), x_0, noised, advantages)


def stream_of(policy, batch_size=None):
    return Stream(policy.velocity, batch_size=batch_size, mixes_times=policy.mixes_times)


def prepared(policy, config, task, batch_size=None):
    stream = stream_of(policy, batch_size)
    task = with_old_policy(stream, task, with_gradients=False)
    with base_model(policy):
        return with_reference_velocity(stream, task)


def gradients(policy):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.adapter.parameters()]


def streamed(policy, config, task, *, is_on_policy, batch_size=None):
    """The gradient that training leaves."""
    for parameter in policy.adapter.parameters():
        parameter.grad = None
    accumulate_matching(
        stream_of(policy, batch_size), task, config, scale=0.5, is_on_policy=is_on_policy
    )
    return gradients(policy)


def by_hand(policy, config, task):
    """The same from the formulas alone, sample by sample, with autograd through all of it."""
    losses, count = [], len(task.noised.t)
    for i, a in enumerate(task.advantages.tolist()):
        if a == 0.0:
            continue
        terms, log_ratio = [], 0.0
        for k in range(count):
            t, eps, x_0 = float(task.noised.t[k, i]), task.noised.eps[k, i], task.x_0[i]
            x_t, y = (1 - t) * x_0 + t * eps, eps - x_0
            v = policy.velocity(x_t[None], t, task.example)[0]
            error, old_error = (v - y).square().mean(), (task.old[k, i] - y).square().mean()
            move = (v - task.old[k, i]).square().mean()
            gap = (v - task.reference[k, i]).square().mean()
            excess = torch.relu(v.norm() / task.reference[k, i].norm() - 1)
            w = {"equal": 1.0, "x0": t**2, "adaptive": t / error.detach().sqrt()}[config.weight]
            if config.weight == "adaptive" and config.objective == "elbo":
                log_ratio += t / old_error.sqrt() * (old_error - error) / count
            else:
                log_ratio += w * (old_error - error) / count
            terms.append((w, error, move, gap, excess))
        ratio = torch.as_tensor(log_ratio).exp()
        for w, error, move, gap, excess in terms:
            held = (a > 0 and ratio > 1 + config.clip) or (a < 0 and ratio < 1 - config.clip)
            pull = {
                "awm": a * error,
                "nft": a * (error - move) + config.beta * move,
                "elbo": (0.0 if held else float(ratio.detach()) * a) * error,
            }[config.objective]
            losses.append(w * pull + config.kl_ref * gap + config.norm_guard * excess**2)
    loss = 0.5 * torch.stack(losses).sum() / (count * len(task.advantages))
    return torch.autograd.grad(loss, policy.adapter.parameters())


def assert_close(one, other):
    size = math.sqrt(sum(float(g.square().sum()) for g in other))
    apart = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)))
    assert size > 0 and apart < 1e-5 * size


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("policy", "batch_size"), [(ToyPolicy, None), (ToyPolicy, 1), (MixingPolicy, 3)]
)
def test_the_gradient_is_that_of_the_formulas(policy, batch_size, objective, weight):
    config = ForwardConfig(
        objective=objective,
        weight=weight,
        times=3,
        kl_ref=0.2,
        norm_guard=0.5,
        beta=0.8,
        clip=0.02,
    )
    policy = moved(policy(), seed=1)
    task = prepared(policy, config, task_of(config), batch_size)
    moved(policy, seed=2, size=0.05)
    found = streamed(policy, config, task, is_on_policy=False, batch_size=batch_size)
    assert_close(found, by_hand(policy, config, task))


def test_the_three_objectives_are_one_on_the_first_update():
    policy, configs = moved(ToyPolicy(), seed=1), [ForwardConfig(objective=o) for o in OBJECTIVES]
    task = prepared(policy, configs[0], task_of(configs[0]))
    awm, nft, elbo = (streamed(policy, c, task, is_on_policy=True) for c in configs)
    for other in (nft, elbo):
        assert all(torch.equal(a, b) for a, b in zip(awm, other, strict=True))
    for config in configs[1:]:  # also where the policy is asked to look back
        later = streamed(policy, config, task, is_on_policy=False)
        assert all(torch.equal(a, b) for a, b in zip(awm, later, strict=True))


def test_nft_with_the_advantage_as_beta_is_awm():
    nft = ForwardConfig(objective="nft", beta=0.6)
    awm = ForwardConfig(objective="awm")
    policy = moved(ToyPolicy(), seed=1)
    task = prepared(policy, nft, task_of(nft, torch.full((GROUP,), 0.6)))
    moved(policy, seed=2)
    found = streamed(policy, nft, task, is_on_policy=False)
    assert_close(found, streamed(policy, awm, task, is_on_policy=False))


@pytest.mark.parametrize("of_theirs", [0.1, 1.0])
def test_nft_is_the_loss_of_diffusion_nft(of_theirs):
    largest, generator = 5.0, torch.Generator().manual_seed(0)
    v, old, y = torch.randn(3, GROUP, 16, generator=generator)
    v.requires_grad_(True)
    r = 0.5 + ADVANTAGES / (2 * largest)
    positive = (1 - of_theirs) * old + of_theirs * v
    negative = (1 + of_theirs) * old - of_theirs * v
    theirs = r * (positive - y).square().mean(1) + (1 - r) * (negative - y).square().mean(1)
    (expected,) = torch.autograd.grad((largest / of_theirs * theirs).sum(), v)
    config = ForwardConfig(objective="nft", beta=of_theirs * largest, kl_ref=0.0)
    error, move = (v - y).square().mean(1), (v - old).square().mean(1)
    terms = MatchingTerms(error, move, torch.zeros(GROUP), torch.ones(GROUP))
    loss = matching_loss(terms, torch.full((GROUP,), 0.5), ADVANTAGES, config)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), v)[0], expected)


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(-0.3, 0.3), st.floats(1e-3, 0.2)
)
def test_a_clipped_advantage_is_the_gradient_of_ppo(advantages, log_r, clip):
    a = torch.tensor(advantages)
    log_ratio = torch.full_like(a, log_r).requires_grad_(True)
    ratio = log_ratio.exp()
    if (ratio - 1).abs().sub(clip).abs().min() < 1e-5:
        return  # at the corner either side is right
    surrogate = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)
    (expected,) = torch.autograd.grad(surrogate.sum(), log_ratio)
    found = clipped_advantages(a, log_ratio.detach(), clip)
    torch.testing.assert_close(found, expected)


class OneNumber:
    """A Gaussian world whose mean is the only parameter."""

    mixes_times = True

    def __init__(self):
        self.mean = torch.nn.Parameter(torch.tensor(0.0))

    def velocity(self, x_t, t, example):
        t = torch.as_tensor(t).view(-1, *[1] * (x_t.ndim - 1))
        world = GaussianWorld(mean=0.0, std=0.5)
        shifted = x_t - (1 - t) * self.mean
        slope = (t - (1 - t) * world.std**2) / world.variance_at(t)
        return -self.mean + slope * shifted


@pytest.mark.parametrize("leash", [0.5, 2.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_optimum_of_a_gaussian_world_is_where_it_must_be(objective, leash):
    # Reward x, data N(m, s^2), advantages (x - m) / s. The pull of a sample on m is
    # -2 c(t)^2 (x - m) A, on average -2 c^2 s; the leash to 0 pulls with 2 c^2 m. So m = s / leash.
    config = ForwardConfig(objective=objective, times=1, kl_ref=leash)
    policy, std, count = OneNumber(), 0.5, 4000
    reference = OneNumber()
    generator = torch.Generator().manual_seed(0)
    path = []
    for _ in range(160):
        mean = float(policy.mean.detach())
        x_0 = mean + std * torch.randn(count, 1, generator=generator)
        t = torch.rand(1, count, generator=generator).clamp_min(1e-3)
        noised = NoisedTimes(t, torch.randn(1, count, 1, generator=generator))
        task = MatchingTask(Example.of(""), x_0, noised, (x_0[:, 0] - mean) / std)
        stream = Stream(reference.velocity, mixes_times=True)
        task = with_reference_velocity(stream, task)
        policy.mean.grad = None
        stream = Stream(policy.velocity, mixes_times=True)
        accumulate_matching(stream, task, config, scale=1.0, is_on_policy=True)
        with torch.no_grad():
            policy.mean -= 0.1 / leash * policy.mean.grad
        path.append(mean)
    settled = path[80:]
    assert sum(settled) / len(settled) == pytest.approx(std / leash, rel=0.05)


@pytest.mark.parametrize("distribution", TIMES)
@pytest.mark.parametrize("shared", [False, True])
def test_a_part_of_a_group_has_the_times_of_the_whole(distribution, shared):
    config = ForwardConfig(times=3, time_distribution=distribution, share_times=shared)
    whole = draw_times(config, LEVELS, SHAPE, range(6), seed=1)
    part = draw_times(config, LEVELS, SHAPE, range(2, 5), seed=1)
    assert torch.equal(part.t, whole.t[:, 2:5]) and torch.equal(part.eps, whole.eps[:, 2:5])
    assert whole.t.shape == (3, 6) and whole.eps.shape == (3, 6, *SHAPE)
    assert ((whole.t > 0) & (whole.t <= 1)).all() and (whole.t.diff(dim=0) < 0).all()
    assert bool((whole.eps == whole.eps[:, :1]).all()) == shared
    assert not torch.equal(whole.eps[0], whole.eps[1])
    assert not torch.equal(draw_times(config, LEVELS, SHAPE, range(6), seed=2).eps, whole.eps)


def test_times_have_the_distribution_that_is_asked_for():
    def drawn(name, times):
        config = ForwardConfig(times=times, time_distribution=name)
        return draw_times(config, LEVELS, (1,), range(3000), seed=0).t

    grid, levels = drawn("grid", 2), torch.tensor(LEVELS)
    shares = (grid[..., None] == levels).float().sum((0, 1)) / 3000
    torch.testing.assert_close(shares, torch.full((6,), 2 / 6), atol=0.03, rtol=0)
    for k, t in enumerate(drawn("uniform", 4)):
        assert float(t.max()) <= 1 - k / 4 + 1e-6 and float(t.min()) >= 0.75 - k / 4 - 1e-6
        assert float(t.mean()) == pytest.approx(0.875 - k / 4, abs=0.01)
    logits = drawn("logit-normal", 1).logit()
    assert float(logits.mean()) == pytest.approx(0, abs=0.06)
    assert float(logits.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("policy", [ToyPolicy, MixingPolicy])
def test_every_sample_time_with_an_advantage_goes_through_once(policy, batch_size):
    config = ForwardConfig(times=4)
    task, policy = task_of(config), policy()
    seen = []
    for batch in matching_batches(task, stream_of(policy, batch_size)):
        assert len(batch.steps) <= (batch_size or GROUP)
        times = task.noised.t[batch.steps, batch.samples]
        assert policy.mixes_times or len(times.unique()) == 1
        counted = slice(batch.count)
        seen += zip(batch.steps[counted].tolist(), batch.samples[counted].tolist(), strict=True)
    trained = [i for i in range(GROUP) if ADVANTAGES[i] != 0]
    assert sorted(seen) == [(k, i) for k in range(4) for i in trained]


def test_a_group_without_advantages_asks_nothing_of_the_model():
    policy, config = ToyPolicy(), ForwardConfig()
    task = task_of(config, torch.zeros(GROUP))
    assert streamed(policy, config, task, is_on_policy=True)[0].abs().max() == 0
    assert policy.calls == []


@pytest.mark.parametrize("objective", ["nft", "elbo"])
@pytest.mark.parametrize("policy", [ToyPolicy, MixingPolicy])
def test_the_first_update_sees_the_policy_that_sampled_to_the_last_bit(policy, objective):
    config, policy = ForwardConfig(objective=objective), moved(policy(), seed=1)
    task = prepared(policy, config, task_of(config), batch_size=3)
    measured = accumulate_matching(stream_of(policy, 3), task, config, scale=1.0, is_on_policy=True)
    assert measured.first_error == 0.0
    moved(policy, seed=2, size=1e-3)
    measured = accumulate_matching(stream_of(policy, 3), task, config, scale=1.0, is_on_policy=True)
    assert measured.first_error > 1e-6


def test_later_updates_need_the_policy_that_sampled():
    config = ForwardConfig(objective="nft", kl_ref=0.0)
    with pytest.raises(ValueError, match="nft compares later updates with the policy that sampled"):
        streamed(ToyPolicy(), config, task_of(config), is_on_policy=False)


@pytest.mark.slow
@pytest.mark.parametrize("mixes_times", [True, False])
def test_saved_bytes_depend_neither_on_the_group_nor_on_the_times(mixes_times, monkeypatch):
    policy, weights = load_policy("cpu")
    monkeypatch.setattr(policy, "mixes_times", mixes_times)
    for factor in policy.adapter.parameters():
        factor.grad = torch.zeros_like(factor)

    def saved(group, times):
        config = ForwardConfig(times=times)
        shape = policy.latent_shape
        noised = draw_times(replace(config, share_times=True), LEVELS, shape, range(group), 0)
        noised = replace(noised, eps=torch.randn(noised.eps.shape))
        advantages = torch.linspace(-1, 1, group)
        x_0 = torch.randn(group, *shape)
        task = MatchingTask(Example.of("red circle"), x_0, noised, advantages)
        task = policy.run(lambda v: with_reference_velocity(_stream(v), task))
        return saved_bytes(
            weights,
            lambda: policy.run(
                lambda v: accumulate_matching(
                    _stream(v), task, config, scale=1.0, is_on_policy=True
                )
            ),
        )

    def _stream(velocity):
        return Stream(velocity, batch_size=2, mixes_times=mixes_times)

    one = saved(2, 1)
    assert one > 2**20
    for group, times in ((8, 1), (2, 4), (8, 4)):
        assert saved(group, times) == pytest.approx(one, rel=1e-3)
