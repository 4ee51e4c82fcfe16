"""The chunk objective and its streamed gradient against whole autograd and step-level GRPO.

Legend: G samples in a group, K chunks, N - 1 trainable steps.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import PROMPTS, ToyPolicy

from chunk_grpo_core.chunks import ChunkPlan, draw_chunks, per_step_plan
from chunk_grpo_core.objective import (
    ObjectiveConfig,
    chunk_statistics,
    clipped_loss,
    log_ratios,
)
from chunk_grpo_core.rollout import Noise, replay_log_p, rollout
from chunk_grpo_core.schedule import shifted_grid
from chunk_grpo_core.sde import SdeConfig
from chunk_grpo_core.streaming import (
    GroupTask,
    accumulate_group,
    log_p_coefficients,
    recompute_old_log_p,
)

GROUP, STEPS = 8, 8
TIGHT = ObjectiveConfig(clip_low=2e-4, clip_high=3e-4)
PLANS = [ChunkPlan((1, 2, 2, 3)), ChunkPlan((8,)), ChunkPlan((2, 2, 2, 2)), per_step_plan(STEPS)]


def moved_policy(plan, *, amount=0.05, fraction=0.5, group=GROUP):
    """A toy policy, a group it sampled, and, if ``amount`` is not 0, a step away from it."""
    policy = ToyPolicy()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for factor in policy.adapter.parameters():
            factor.add_(0.1 * torch.randn(factor.shape, generator=generator))
    grid = shifted_grid(STEPS + 1)
    noise = Noise(True, 2, group)
    group_of = rollout(policy.velocity, PROMPTS[0], grid, SdeConfig(), noise, policy.latent_shape)
    advantages = torch.randn(group, generator=generator)
    drawn = draw_chunks(plan, fraction, group, 11)
    with torch.no_grad():
        for factor in policy.adapter.parameters():
            factor.add_(amount * torch.randn(factor.shape, generator=generator))
    return policy, GroupTask(group_of, advantages, drawn)


def whole_log_p(policy, task):
    """Log-densities of all steps in one graph, (G, N - 1)."""
    steps = range(task.trajectory.log_p.shape[0])
    return torch.stack(
        [replay_log_p(policy.velocity, task.trajectory, step) for step in steps], dim=1
    )


def gradient(policy):
    """The accumulated gradient as one vector; cleared."""
    found = torch.cat([factor.grad.flatten() for factor in policy.adapter.parameters()])
    for factor in policy.adapter.parameters():
        factor.grad = None
    return found


def whole_gradient(policy, task, plan, config):
    log_ratio = log_ratios(whole_log_p(policy, task), task.trajectory.log_p.T, plan, config)
    clipped_loss(log_ratio, task.advantages, task.drawn, plan, config).backward()
    return gradient(policy), log_ratio.detach()


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


def assert_off_policy_and_clipping(log_ratio, task, plan, config):
    stats = chunk_statistics(log_ratio, task.advantages, task.drawn, plan, config)
    assert float(stats.deviation.max()) > 1e-3
    assert 0 < int(stats.clipped.sum()) < int(task.drawn.sum())


def test_one_step_per_chunk_is_step_level_grpo_to_the_last_bit():
    plan = per_step_plan(STEPS)
    policy, task = moved_policy(plan)
    ours, log_ratio = whole_gradient(policy, task, plan, TIGHT)
    assert_off_policy_and_clipping(log_ratio, task, plan, TIGHT)
    log_p = whole_log_p(policy, task)
    step_level_grpo(log_p, task.trajectory.log_p.T, task.advantages, task.drawn, TIGHT).backward()
    assert torch.equal(ours, gradient(policy)) and ours.abs().max() > 0


def test_coefficients_of_one_step_per_chunk_are_step_level_grpo_to_the_last_bit():
    plan = per_step_plan(STEPS)
    policy, task = moved_policy(plan)
    log_p = whole_log_p(policy, task).detach().requires_grad_(True)
    loss = step_level_grpo(log_p, task.trajectory.log_p.T, task.advantages, task.drawn, TIGHT)
    (expected,) = torch.autograd.grad(loss, log_p)
    assert torch.equal(log_p_coefficients(log_p, task, plan, TIGHT), expected)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_equal_chunks_on_policy_have_the_gradient_of_step_level_grpo(size):
    plan = ChunkPlan((size,) * (STEPS // size))
    policy, task = moved_policy(plan, amount=0.0, fraction=1.0)
    ours, log_ratio = whole_gradient(policy, task, plan, TIGHT)
    assert (log_ratio == 0).all()
    every = torch.ones(GROUP, STEPS, dtype=torch.bool)
    log_p, old = whole_log_p(policy, task), task.trajectory.log_p.T
    step_level_grpo(log_p, old, task.advantages, every, TIGHT).backward()
    assert torch.allclose(ours, gradient(policy), rtol=1e-5, atol=1e-6 * float(ours.abs().max()))


@pytest.mark.parametrize("batch_size", [None, 4, 3, 1])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan.sizes))
def test_streamed_gradient_is_that_of_the_whole_clipped_objective(plan, batch_size):
    policy, task = moved_policy(plan, fraction=0.7)
    expected, log_ratio = whole_gradient(policy, task, plan, TIGHT)
    assert_off_policy_and_clipping(log_ratio, task, plan, TIGHT)
    stats, passes = accumulate_group(
        policy.velocity, task, plan, TIGHT, scale=0.5, is_on_policy=False, batch_size=batch_size
    )
    error = (2.0 * gradient(policy) - expected).norm() / expected.norm()
    assert float(error) < 1e-6
    whole = chunk_statistics(log_ratio, task.advantages, task.drawn, plan, TIGHT)
    assert stats.clipped.tolist() == whole.clipped.tolist()
    assert torch.allclose(stats.ratio, whole.ratio) and torch.allclose(stats.kl, whole.kl)
    widths = torch.tensor(plan.sizes)
    assert passes == int(((whole.count - whole.clipped) * widths).sum())


@pytest.mark.parametrize("batch_size", [None, 4, 3, 1])
def test_one_pass_on_policy_is_the_whole_gradient_with_a_ratio_of_exactly_one(batch_size):
    plan = ChunkPlan((1, 2, 2, 3))
    policy, task = moved_policy(plan, amount=0.0)
    expected, _ = whole_gradient(policy, task, plan, TIGHT)
    policy.calls.clear()
    stats, passes = accumulate_group(
        policy.velocity, task, plan, TIGHT, scale=1.0, is_on_policy=True, batch_size=batch_size
    )
    assert float((gradient(policy) - expected).norm() / expected.norm()) < 1e-6
    assert stats.deviation.max() == 0.0 and stats.clipped.sum() == 0
    assert passes == int(task.needed_steps(plan).sum())
    assert max(policy.calls) <= max(batch_size or GROUP, 4)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_no_call_of_the_model_grows_with_the_chunk(batch_size):
    policy, task = moved_policy(ChunkPlan((8,)))
    policy.calls.clear()
    accumulate_group(
        policy.velocity,
        task,
        ChunkPlan((8,)),
        TIGHT,
        scale=1.0,
        is_on_policy=False,
        batch_size=batch_size,
    )
    assert max(policy.calls) <= (batch_size or GROUP)


def test_clipped_and_undrawn_samples_have_a_coefficient_of_zero():
    plan = ChunkPlan((2, 2))
    old = torch.zeros(4, 4)
    policy, task = moved_policy(plan, group=4)
    trajectory = task.trajectory.__class__(
        "p", shifted_grid(5), SdeConfig(), task.trajectory.states[:6], old.T
    )
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    drawn = torch.ones(4, 2, dtype=torch.bool)
    drawn[3, 1] = False
    log_p = torch.full((4, 4), 0.5)  # far above the range: the clip holds gains, not losses
    log_p[2:] = -0.5  # far below it
    found = log_p_coefficients(log_p, GroupTask(trajectory, advantages, drawn), plan, TIGHT)
    assert (found != 0).tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_descending_the_loss_follows_the_sign_of_the_advantage(advantage):
    log_ratio = torch.zeros(1, 2, requires_grad=True)
    drawn = torch.ones(1, 2, dtype=torch.bool)
    clipped_loss(log_ratio, torch.tensor([advantage]), drawn, ChunkPlan((1, 2)), TIGHT).backward()
    assert torch.allclose(log_ratio.grad, torch.full((1, 2), -advantage / 2))


def test_chunk_ratio_is_the_geometric_mean_of_its_steps():
    step_ratios = torch.tensor([[2.0, 4.0, 1.0, 0.5]])
    log_ratio = log_ratios(step_ratios.log(), torch.zeros(1, 4), ChunkPlan((1, 2, 1)), TIGHT)
    assert torch.allclose(log_ratio.exp(), torch.tensor([[2.0, 2.0, 0.5]]))


def test_step_ratios_inside_chunks_have_the_chunk_gradient_on_policy():
    plan = ChunkPlan((1, 2, 2, 3))
    policy, task = moved_policy(plan, amount=0.0)
    by_chunk, _ = whole_gradient(policy, task, plan, TIGHT)
    by_step, log_ratio = whole_gradient(policy, task, plan, replace(TIGHT, ratio="step"))
    assert log_ratio.shape == (GROUP, STEPS) and by_chunk.abs().max() > 0
    assert torch.allclose(by_chunk, by_step, rtol=1e-5, atol=1e-6 * float(by_chunk.abs().max()))


def test_step_ratios_inside_chunks_are_clipped_one_by_one():
    plan, config = ChunkPlan((1, 2)), ObjectiveConfig(clip_low=0.15, clip_high=0.15, ratio="step")
    ratio, drawn = torch.tensor([[1.0, 1.5, 0.9]]), torch.ones(1, 2, dtype=torch.bool)
    loss = clipped_loss(ratio.log(), torch.ones(1), drawn, plan, config)
    assert float(loss) == pytest.approx(-(1.0 + (1.15 + 0.9) / 2) / 2)
    stats = chunk_statistics(ratio.log(), torch.ones(1), drawn, plan, config)
    assert stats.clipped.tolist() == [0.0, 0.5]
    assert stats.ratio.tolist() == pytest.approx([1.0, 1.2])
    assert stats.deviation.tolist() == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize("batch_size", [None, 5])
def test_streamed_gradient_of_step_ratios_is_that_of_the_whole_objective(batch_size):
    plan, config = ChunkPlan((1, 2, 2, 3)), replace(TIGHT, ratio="step")
    policy, task = moved_policy(plan)
    expected, log_ratio = whole_gradient(policy, task, plan, config)
    assert_off_policy_and_clipping(log_ratio, task, plan, config)
    accumulate_group(
        policy.velocity, task, plan, config, scale=1.0, is_on_policy=False, batch_size=batch_size
    )
    found = gradient(policy)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_loss_averages_drawn_chunks_then_samples():
    ratio = torch.tensor([[1.1, 5.0], [0.9, 0.8]])
    drawn = torch.tensor([[True, False], [True, True]])
    wide = ObjectiveConfig(clip_low=0.15, clip_high=0.15)
    # Gains: 1.1 * 2 alone; then the mean of -0.9 and min(-0.8, -0.85).
    expected = -(2.2 + (-0.9 - 0.85) / 2) / 2
    loss = clipped_loss(ratio.log(), torch.tensor([2.0, -1.0]), drawn, ChunkPlan((1, 2)), wide)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_statistics_of_known_ratios():
    ratio = torch.tensor([[1.1, 5.0], [0.8, 1.3]])
    drawn = torch.tensor([[True, False], [True, True]])
    wide = ObjectiveConfig(clip_low=0.15, clip_high=0.05)
    stats = chunk_statistics(ratio.log(), torch.tensor([1.0, -1.0]), drawn, ChunkPlan((1, 2)), wide)
    assert stats.count.tolist() == [2, 1] and stats.clipped.tolist() == [2, 0]
    assert stats.ratio.tolist() == pytest.approx([1.9, 1.3])
    assert stats.deviation.tolist() == pytest.approx([0.2, 0.3])
    k3 = (ratio - 1 - ratio.log()).tolist()
    assert stats.kl.tolist() == pytest.approx([k3[0][0] + k3[1][0], k3[1][1]], rel=1e-4)
    both = stats + stats
    assert both.count.tolist() == [4, 2] and both.deviation.tolist() == stats.deviation.tolist()


def test_recomputed_log_p_makes_the_present_policy_the_old_one():
    plan = ChunkPlan((1, 2, 2, 3))
    policy, task = moved_policy(plan)
    fresh = recompute_old_log_p(policy.velocity, task, plan)
    assert not torch.equal(fresh.trajectory.log_p, task.trajectory.log_p)
    stats, _ = accumulate_group(policy.velocity, fresh, plan, TIGHT, scale=1.0, is_on_policy=False)
    assert stats.deviation.max() == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": 0.0}, r"objective.clip_low is 0.0; it must be in \(0, 1\)"),
        ({"clip_low": 1.0}, "objective.clip_low is 1.0"),
        ({"ratio": "word"}, "objective.ratio is 'word'; it must be one of chunk, step"),
        ({"clip_high": 0.0}, "objective.clip_high is 0.0; it must be above 0"),
    ],
)
def test_bad_clip_ranges_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)
