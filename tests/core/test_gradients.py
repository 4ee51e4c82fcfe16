"""The chunk objective and its streamed gradient against whole autograd and step-level GRPO.

Legend: G samples in a group, K chunks, N - 1 trainable steps.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import PROMPTS, MixingPolicy, ToyPolicy
from torch.distributions import Normal, kl_divergence

from chunk_grpo_core.method.chunk_statistics import chunk_statistics
from chunk_grpo_core.method.chunks import ChunkPlan, draw_chunks, per_step_plan
from chunk_grpo_core.method.group_task import GroupTask
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.objective import ObjectiveConfig, StepTerms, group_loss
from chunk_grpo_core.method.replay import replay_step
from chunk_grpo_core.method.rollout import Trajectory, rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.method.stream import Stream
from chunk_grpo_core.method.streaming import (
    accumulate_group,
    coefficients,
    recompute_old_policy,
    with_reference,
)
from chunk_grpo_core.method.windows import noisy_steps

GROUP, STEPS = 8, 8
TIGHT = ObjectiveConfig(clip_low=2e-4, clip_high=3e-4)
PLANS = [ChunkPlan((1, 2, 2, 3)), ChunkPlan((8,)), ChunkPlan((2, 2, 2, 2)), per_step_plan(STEPS)]


def moved_policy(plan, *, amount=0.05, fraction=0.5, noise="all"):
    """A toy policy, a group it sampled, and, if ``amount`` is not 0, a step away from it."""
    policy = ToyPolicy()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for factor in policy.adapter.parameters():
            factor.add_(0.1 * torch.randn(factor.shape, generator=generator))
    grid = shifted_grid(STEPS + 1)
    drawn = draw_chunks(plan, fraction, GROUP, 11)
    group_of = rollout(
        policy.velocity,
        PROMPTS[0],
        grid,
        SdeConfig(),
        Noise(True, 2, GROUP),
        policy.latent_shape,
        stochastic=noisy_steps(noise, plan, range(plan.count), drawn),
        solver="dpm2",
        keep_means=True,
    )
    advantages = torch.randn(GROUP, generator=generator)
    with torch.no_grad():
        for factor in policy.adapter.parameters():
            factor.add_(amount * torch.randn(factor.shape, generator=generator))
    return policy, GroupTask(group_of, plan, advantages, drawn)


def whole_terms(policy, task):
    """The terms of all steps in one graph, each (G, N - 1), from the Gaussians themselves; 0 where
    a step took no noise."""
    group, terms = task.trajectory, []
    for step in range(group.log_p.shape[0]):
        noisy = group.stochastic[step].nonzero().flatten()
        new = replay_step(policy.velocity, group, step, noisy)
        kl_old = gap = torch.zeros(len(noisy))
        if group.means is not None:
            old = Normal(group.means[step][noisy], new.transition.std)
            kl = kl_divergence(old, Normal(new.transition.mean, new.transition.std))
            kl_old = kl.flatten(1).mean(1)
        if task.reference is not None:
            gap = ((new.v_t - task.reference.v_t[step][noisy]) ** 2).flatten(1).mean(1)
        nothing = torch.zeros(group.group_size)
        terms.append(StepTerms(*(nothing.index_put((noisy,), v) for v in (new.log_p, kl_old, gap))))
    return StepTerms(*(torch.stack(term, 1) for term in zip(*terms, strict=True)))


def whole_log_p(policy, task):
    return whole_terms(policy, task).log_p


def gradient(policy):
    """The accumulated gradient as one vector; cleared."""
    found = torch.cat([factor.grad.flatten() for factor in policy.adapter.parameters()])
    for factor in policy.adapter.parameters():
        factor.grad = None
    return found


def whole_gradient(policy, task, plan, config):
    """The gradient of the loss as one graph over all steps, and the terms."""
    terms = whole_terms(policy, task)
    group_loss(terms, task.facts(), config).backward()
    return gradient(policy), StepTerms(*(term.detach() for term in terms))


def step_level_grpo(log_p, old_log_p, advantages, trained, config):
    """GRPO over single denoising steps, written from the Flow-GRPO paper without our objective.

    Maximise, for each sample, the mean over its trained steps of the clipped surrogate.
    """
    loss = torch.zeros(())
    for i in range(len(advantages)):
        steps = trained[i].nonzero().flatten().tolist()
        for t in steps:
            ratio = torch.exp(log_p[i, t] - old_log_p[i, t])
            kept = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
            worse = torch.maximum(-advantages[i] * ratio, -advantages[i] * kept)
            loss = loss + worse / len(steps) / len(advantages)
    return loss


def size_of(task):
    return task.trajectory.states[0, 0].numel()


def assert_off_policy_and_clipping(terms, task, plan, config):
    stats = chunk_statistics(terms, task.facts(), task.drawn, config, size_of(task))
    assert float(stats.deviation.max()) > 1e-3
    assert 0 < int(stats.clipped.sum()) < int(task.drawn.sum())


def test_one_step_per_chunk_is_step_level_grpo_to_the_last_bit():
    plan = per_step_plan(STEPS)
    policy, task = moved_policy(plan)
    ours, terms = whole_gradient(policy, task, plan, TIGHT)
    assert_off_policy_and_clipping(terms, task, plan, TIGHT)
    log_p = whole_log_p(policy, task)
    step_level_grpo(log_p, task.trajectory.log_p.T, task.advantages, task.drawn, TIGHT).backward()
    assert torch.equal(ours, gradient(policy)) and ours.abs().max() > 0


def test_coefficients_of_one_step_per_chunk_are_step_level_grpo_to_the_last_bit():
    plan = per_step_plan(STEPS)
    policy, task = moved_policy(plan)
    log_p = whole_log_p(policy, task).detach().requires_grad_(True)
    loss = step_level_grpo(log_p, task.trajectory.log_p.T, task.advantages, task.drawn, TIGHT)
    (expected,) = torch.autograd.grad(loss, log_p)
    terms = StepTerms(log_p, torch.zeros_like(log_p), torch.zeros_like(log_p))
    ours = coefficients(lambda terms: group_loss(terms, task.facts(), TIGHT), terms)
    assert torch.equal(ours.log_p, expected)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_equal_chunks_on_policy_have_the_gradient_of_step_level_grpo(size):
    plan = ChunkPlan((size,) * (STEPS // size))
    policy, task = moved_policy(plan, amount=0.0, fraction=1.0)
    ours, terms = whole_gradient(policy, task, plan, TIGHT)
    assert torch.equal(terms.log_p, task.trajectory.log_p.T)
    every = torch.ones(GROUP, STEPS, dtype=torch.bool)
    log_p, old = whole_log_p(policy, task), task.trajectory.log_p.T
    step_level_grpo(log_p, old, task.advantages, every, TIGHT).backward()
    assert torch.allclose(ours, gradient(policy), rtol=1e-5, atol=1e-6 * float(ours.abs().max()))


@pytest.mark.parametrize("noise", ["all", "drawn"])
@pytest.mark.parametrize("batch_size", [None, 4, 3, 1])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan.sizes))
def test_streamed_gradient_is_that_of_the_whole_clipped_objective(plan, batch_size, noise):
    policy, task = moved_policy(plan, fraction=0.7, noise=noise)
    expected, terms = whole_gradient(policy, task, plan, TIGHT)
    assert_off_policy_and_clipping(terms, task, plan, TIGHT)
    stats, passes = accumulate_group(
        Stream(policy.velocity, batch_size=batch_size), task, TIGHT, scale=0.5, is_on_policy=False
    )
    error = (2.0 * gradient(policy) - expected).norm() / expected.norm()
    assert float(error) < 1e-6
    whole = chunk_statistics(terms, task.facts(), task.drawn, TIGHT, size_of(task))
    assert stats.clipped.tolist() == whole.clipped.tolist()
    assert torch.allclose(stats.ratio, whole.ratio) and torch.allclose(stats.kl, whole.kl)
    widths = torch.tensor(plan.sizes)
    assert passes == int(((whole.count - whole.clipped) * widths).sum())


@pytest.mark.parametrize("noise", ["all", "drawn"])
@pytest.mark.parametrize("batch_size", [None, 4, 3, 1])
def test_one_pass_on_policy_is_the_whole_gradient_with_a_ratio_of_exactly_one(batch_size, noise):
    plan = ChunkPlan((1, 2, 2, 3))
    policy, task = moved_policy(plan, amount=0.0, noise=noise)
    expected, _ = whole_gradient(policy, task, plan, TIGHT)
    policy.calls.clear()
    stats, passes = accumulate_group(
        Stream(policy.velocity, batch_size=batch_size), task, TIGHT, scale=1.0, is_on_policy=True
    )
    assert float((gradient(policy) - expected).norm() / expected.norm()) < 1e-6
    assert stats.deviation.max() == 0.0 and stats.clipped.sum() == 0
    assert passes == int(task.needed_steps(TIGHT).sum())
    assert max(policy.calls) <= max(batch_size or GROUP, 4)


@pytest.mark.parametrize("is_on_policy", [True, False])
def test_a_chunk_whose_steps_took_no_noise_cannot_be_trained(is_on_policy):
    plan = ChunkPlan((1, 2, 2, 3))
    policy, task = moved_policy(plan, noise="drawn")
    task = replace(task, drawn=~task.drawn)
    with pytest.raises(ValueError, match=r"step \d was deterministic for some of these samples"):
        accumulate_group(Stream(policy.velocity), task, TIGHT, scale=1.0, is_on_policy=is_on_policy)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_no_call_of_the_model_grows_with_the_chunk(batch_size):
    policy, task = moved_policy(ChunkPlan((8,)))
    policy.calls.clear()
    stream = Stream(policy.velocity, batch_size=batch_size)
    accumulate_group(stream, task, TIGHT, scale=1.0, is_on_policy=False)
    assert max(policy.calls) <= (batch_size or GROUP)


def test_clipped_and_undrawn_samples_have_a_coefficient_of_zero():
    plan = ChunkPlan((2, 2))
    old, every = torch.zeros(4, 4), torch.ones(4, 4, dtype=torch.bool)
    trajectory = Trajectory("p", shifted_grid(5), SdeConfig(), torch.randn(6, 4, 2), old, every)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    drawn = torch.ones(4, 2, dtype=torch.bool)
    drawn[3, 1] = False
    log_p = torch.full((4, 4), 0.5)  # far above the range: the clip holds gains, not losses
    log_p[2:] = -0.5  # far below it
    facts = GroupTask(trajectory, plan, advantages, drawn).facts()
    terms = StepTerms(log_p, torch.zeros(4, 4), torch.zeros(4, 4))
    ours = coefficients(lambda terms: group_loss(terms, facts, TIGHT), terms).log_p
    assert (ours != 0).tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


def test_step_ratios_inside_chunks_have_the_chunk_gradient_on_policy():
    plan = ChunkPlan((1, 2, 2, 3))
    policy, task = moved_policy(plan, amount=0.0)
    by_chunk, _ = whole_gradient(policy, task, plan, TIGHT)
    by_step, _ = whole_gradient(policy, task, plan, replace(TIGHT, ratio="step"))
    assert by_chunk.abs().max() > 0
    assert torch.allclose(by_chunk, by_step, rtol=1e-5, atol=1e-6 * float(by_chunk.abs().max()))


@pytest.mark.parametrize("batch_size", [None, 5])
def test_streamed_gradient_of_step_ratios_is_that_of_the_whole_objective(batch_size):
    plan, config = ChunkPlan((1, 2, 2, 3)), replace(TIGHT, ratio="step")
    policy, task = moved_policy(plan)
    expected, terms = whole_gradient(policy, task, plan, config)
    assert_off_policy_and_clipping(terms, task, plan, config)
    accumulate_group(
        Stream(policy.velocity, batch_size=batch_size), task, config, scale=1.0, is_on_policy=False
    )
    found = gradient(policy)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_recomputed_log_p_makes_the_present_policy_the_old_one():
    plan = ChunkPlan((1, 2, 2, 3))
    policy, task = moved_policy(plan)
    fresh = recompute_old_policy(Stream(policy.velocity), task, TIGHT)
    assert not torch.equal(fresh.trajectory.log_p, task.trajectory.log_p)
    stats, _ = accumulate_group(
        Stream(policy.velocity), fresh, TIGHT, scale=1.0, is_on_policy=False
    )
    assert stats.deviation.max() == 0.0


class OtherBitsWithGradients:
    """As compiled blocks: calls with gradients round otherwise than calls without."""

    def __init__(self, policy):
        self._velocity = policy.velocity

    def __call__(self, x_t, t, example):
        v_t = self._velocity(x_t, t, example)
        return v_t * (1 + 1e-3 * torch.is_grad_enabled())


@pytest.mark.parametrize("with_gradients", [True, False])
def test_recomputed_log_p_is_measured_as_the_update_will_measure_it(with_gradients):
    plan = ChunkPlan((1, 2, 2, 3))
    policy, task = moved_policy(plan)
    velocity = OtherBitsWithGradients(policy)
    fresh = recompute_old_policy(Stream(velocity), task, TIGHT, with_gradients=with_gradients)
    assert not fresh.trajectory.log_p.requires_grad
    stats, _ = accumulate_group(Stream(velocity), fresh, TIGHT, scale=1.0, is_on_policy=True)
    assert (stats.deviation.max() == 0.0) == with_gradients


GUARDED = {
    "kl-mask": ObjectiveConfig(trust_region="kl-mask", kl_threshold=1e-5),
    "kl-mask by step": ObjectiveConfig(trust_region="kl-mask", kl_threshold=1e-5, ratio="step"),
    "ratio norm": replace(TIGHT, ratio_norm=True, step_weights="guard"),
    "tempflow": replace(TIGHT, step_weights="tempflow"),
    "kl to old": replace(TIGHT, kl_old=0.5),
    "velocity to reference": replace(TIGHT, kl_ref=1e-2),
    "kl to reference": replace(TIGHT, kl_ref=0.5, kl_type="exact", ratio="step"),
    "flow-grpo's kl": replace(TIGHT, kl_ref=5.0, kl_type="flow-grpo"),
    "all": ObjectiveConfig(
        clip_low=2e-4,
        clip_high=3e-4,
        ratio_norm=True,
        step_weights="tempflow",
        kl_old=0.5,
        kl_ref=0.5,
        kl_type="exact",
    ),
}


def measured_reference(policy, task, plan, config):
    with policy.adapter.disabled():
        return with_reference(Stream(policy.velocity), task, config)


@pytest.mark.parametrize(("noise", "batch_size"), [("all", None), ("all", 3), ("drawn", 3)])
@pytest.mark.parametrize("name", GUARDED)
def test_streamed_gradient_of_guards_and_penalties_is_that_of_the_whole_objective(
    name, noise, batch_size
):
    plan, config = ChunkPlan((1, 2, 2, 3)), GUARDED[name]
    policy, task = moved_policy(plan, fraction=0.7, noise=noise)
    if config.needs_reference:
        task = measured_reference(policy, task, plan, config)
    expected, terms = whole_gradient(policy, task, plan, config)
    plain, _ = whole_gradient(policy, task, plan, TIGHT)
    assert float((plain - expected).norm() / plain.norm()) > 5e-4  # it changes something
    if name != "ratio norm" and name != "all":
        assert_off_policy_and_clipping(terms, task, plan, config)
    stats, _ = accumulate_group(
        Stream(policy.velocity, batch_size=batch_size), task, config, scale=1.0, is_on_policy=False
    )
    assert float((gradient(policy) - expected).norm() / expected.norm()) < 1e-6
    whole = chunk_statistics(terms, task.facts(), task.drawn, config, size_of(task))
    for found, wanted in ((stats.kl, whole.kl), (stats.clipped, whole.clipped)):
        assert torch.allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("name", GUARDED)
def test_one_pass_on_policy_is_exact_with_guards_and_penalties(name):
    plan, config = ChunkPlan((1, 2, 2, 3)), GUARDED[name]
    policy, task = moved_policy(plan, amount=0.0)
    if config.needs_reference:
        task = measured_reference(policy, task, plan, config)
    expected, _ = whole_gradient(policy, task, plan, config)
    stats, _ = accumulate_group(
        Stream(policy.velocity, batch_size=4), task, config, scale=1.0, is_on_policy=True
    )
    assert float((gradient(policy) - expected).norm() / expected.norm()) < 1e-6
    assert stats.deviation.max() == 0.0 and stats.clipped.sum() == 0


def test_penalties_train_samples_without_advantage_and_nothing_else_does():
    plan = ChunkPlan((1, 2, 2, 3))
    policy, task = moved_policy(plan)
    flat = replace(task, advantages=torch.zeros(GROUP))
    assert not flat.needed_steps(TIGHT).any()
    config = GUARDED["velocity to reference"]
    flat = measured_reference(policy, flat, plan, config)
    stats, passes = accumulate_group(
        Stream(policy.velocity), flat, config, scale=1.0, is_on_policy=False
    )
    assert gradient(policy).abs().max() > 0 and stats.gap.sum() > 0
    widths = torch.tensor(plan.sizes)
    assert passes == int((task.drawn.sum(0) * widths).sum())


def test_kl_to_the_reference_is_zero_for_an_adapter_that_does_nothing():
    plan, config = ChunkPlan((4, 4)), GUARDED["velocity to reference"]
    policy, task = moved_policy(plan)
    with torch.no_grad():
        for factor in policy.adapter.parameters():
            factor.zero_()
    task = measured_reference(policy, task, plan, config)
    stats, _ = accumulate_group(
        Stream(policy.velocity), task, config, scale=1.0, is_on_policy=False
    )
    assert stats.gap.sum() == 0.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GUARDED["kl-mask"], "keep_means=True"),
        (GUARDED["velocity to reference"], "call with_reference"),
        (GUARDED["kl to old"], "keep_means=True"),
    ],
)
def test_what_a_guard_needs_must_be_measured_first(config, message):
    plan = ChunkPlan((4, 4))
    policy, task = moved_policy(plan)
    task = replace(task, trajectory=replace(task.trajectory, means=None))
    with pytest.raises(ValueError, match=message):
        accumulate_group(Stream(policy.velocity), task, config, scale=1.0, is_on_policy=False)


def mixing(policy):
    """The same policy, but with a time for each sample."""
    other = MixingPolicy()
    other.adapter = policy.adapter
    return other


@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
@pytest.mark.parametrize("amount", [0.0, 0.05])
@pytest.mark.parametrize("ratio", ["chunk", "step"])
@pytest.mark.parametrize("plan", [ChunkPlan((1, 2, 2, 3)), ChunkPlan((8,)), per_step_plan(8)])
def test_mixed_batches_have_the_gradient_of_whole_autograd(plan, ratio, amount, batch_size):
    config = ObjectiveConfig(clip_low=2e-4, clip_high=3e-4, ratio=ratio)
    policy, task = moved_policy(plan, amount=amount)
    expected, _ = whole_gradient(policy, task, plan, config)
    mixed = mixing(policy)
    accumulate_group(
        Stream(mixed.velocity, batch_size=batch_size, mixes_times=True),
        task,
        config,
        scale=1.0,
        is_on_policy=amount == 0.0,
    )
    found = torch.cat([factor.grad.flatten() for factor in policy.adapter.parameters()])
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(
    ("plan", "batch_size", "mixes_times", "passes"),
    [
        (ChunkPlan((2, 2, 4)), 4, True, 1),  # every chunk fits
        (ChunkPlan((8,)), 4, True, 2),  # none does
        (per_step_plan(8), 4, False, 1),
        (ChunkPlan((2, 2, 2, 2)), 4, False, 2),
    ],
)
def test_an_off_policy_update_takes_one_pass_where_chunks_fit(
    plan, batch_size, mixes_times, passes
):
    policy, task = moved_policy(plan, fraction=1.0)
    policy = mixing(policy)
    wide = ObjectiveConfig(clip_low=0.9, clip_high=9.0)  # nothing is clipped
    accumulate_group(
        Stream(policy.velocity, batch_size=batch_size, mixes_times=mixes_times),
        task,
        wide,
        scale=1.0,
        is_on_policy=False,
    )
    needed = int(task.needed_steps(TIGHT).sum())
    assert passes * needed <= sum(policy.calls) <= passes * needed + 4


def test_a_penalty_to_the_old_policy_costs_nothing_at_that_policy():
    plan, config = ChunkPlan((1, 2, 2, 3)), replace(TIGHT, kl_old=0.5)
    policy, task = moved_policy(plan, amount=0.0)
    task = replace(task, advantages=task.advantages.index_fill(0, torch.tensor([0, 2]), 0.0))
    passes = {}
    for name, used in (("with", config), ("without", TIGHT)):
        _, passes[name] = accumulate_group(
            Stream(policy.velocity), task, used, scale=1.0, is_on_policy=True
        )
    assert passes["with"] == passes["without"] == int(task.needed_steps(TIGHT).sum())
    assert int(task.needed_steps(config).sum()) > passes["with"]  # once the policy has moved
