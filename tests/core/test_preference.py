"""Preference losses: against 30 lines by hand, at their limits, and where the optimum must be.

Legend: G pictures in a group, K times.
"""

from __future__ import annotations

import math

import pytest
import torch
from fakes import GaussianWorld, MixingPolicy, ToyPolicy
from torch.nn.functional import logsigmoid

from chunk_grpo_core.method.matching_stream import MatchingTask, with_reference_velocity
from chunk_grpo_core.method.matching_times import NoisedTimes, draw_times
from chunk_grpo_core.method.policy import base_model
from chunk_grpo_core.method.preference import (
    OBJECTIVES,
    PreferenceConfig,
    preference_losses,
    reference_point,
)
from chunk_grpo_core.method.preference_stream import accumulate_preferences
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.method.stream import Stream
from chunk_grpo_core.prompts.example import Example

GROUP, SHAPE = 6, ToyPolicy.latent_shape
LEVELS = shifted_grid(6, 2.0).sigmas[:-1]
ANSWERS = torch.tensor([1.0, -1.0] * (GROUP // 2))
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


def moved(policy, size=0.2):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in policy.adapter.parameters():
            factor.add_(size * torch.randn(factor.shape, generator=generator))
    return policy


def in_double(policy):
    policy.weights = {name: weight.double() for name, weight in policy.weights.items()}
    for factor in policy.adapter.parameters():
        factor.data = factor.data.double()
    call = policy.velocity
    policy.velocity = lambda x, t, example: call(x.double(), t, example)
    return policy


def task_of(config, x_0=None, answers=ANSWERS):
    generator = torch.Generator().manual_seed(3)
    x_0 = torch.randn(GROUP, *SHAPE, generator=generator) if x_0 is None else x_0
    noised = draw_times(config, LEVELS, SHAPE, range(GROUP), seed=3)
    return MatchingTask(Example.of("warm"), x_0, noised, answers)


def streamed(policy, config, task, batch_size=None):
    """What was measured, and the gradient that training leaves, as one vector."""
    stream = Stream(policy.velocity, batch_size=batch_size, mixes_times=policy.mixes_times)
    with base_model(policy):
        task = with_reference_velocity(stream, task)
    for parameter in policy.adapter.parameters():
        parameter.grad = None
    measured = accumulate_preferences(stream, task, config, scale=0.5)
    return measured, gradient_of(policy)


def gradient_of(policy):
    return torch.cat([p.grad.flatten().double() for p in policy.adapter.parameters()])


def by_hand(policy, config, task):
    """The loss from the papers' formulas, with autograd through all of it."""
    rewards = []
    for i in range(GROUP):
        for k in range(config.times):
            t, eps, x_0 = task.noised.t[k, i].item(), task.noised.eps[k, i], task.x_0[i]
            x_t, y = (1 - t) * x_0 + t * eps, eps - x_0
            error = (policy.velocity(x_t[None], t, task.example)[0] - y).square().mean()
            with base_model(policy):
                v_ref = policy.velocity(x_t[None], t, task.example)[0]
            reference = (v_ref - y).square().mean()
            w = t**2 if config.weight == "x0" else 1.0
            rewards.append(config.beta / 2 * w * (reference - error))
    rewards = torch.stack(rewards).view(GROUP, config.times)
    if config.objective == "dpo":
        loss = -logsigmoid(rewards[0::2] - rewards[1::2]).mean()
    else:
        z = max(0.0, rewards.mean().item())
        liked = torch.sigmoid(rewards[task.advantages > 0] - z)
        others = torch.sigmoid(z - rewards[task.advantages < 0])
        loss = 1.0 - torch.cat([liked, others]).mean()
    for parameter in policy.adapter.parameters():
        parameter.grad = None
    (0.5 * loss).backward()
    return loss.item(), gradient_of(policy)


@pytest.mark.parametrize("weight", ["equal", "x0"])
@pytest.mark.parametrize("batch_size", [None, 1, 3, 18])
@pytest.mark.parametrize("kind", [ToyPolicy, MixingPolicy])
@every_objective
def test_the_streamed_gradient_is_that_of_the_formula(objective, kind, batch_size, weight):
    config = PreferenceConfig(objective=objective, beta=40.0, times=3, weight=weight)
    policy, task = in_double(moved(kind())), task_of(config)
    measured, gradient = streamed(policy, config, task, batch_size)
    loss, expected = by_hand(policy, config, task)
    assert torch.cosine_similarity(gradient, expected, dim=0) > 1 - 1e-9
    assert (gradient - expected).norm() < 1e-5 * expected.norm()
    assert measured.loss / measured.losses == pytest.approx(loss, rel=1e-5)
    assert measured.passes == 3 * GROUP and measured.better_reward != 0.0
    assert max(policy.calls[len(policy.calls) // 2 :]) <= max(batch_size or GROUP, 1)


@every_objective
def test_the_loss_at_the_reference_is_log_2_or_one_half(objective):
    config = PreferenceConfig(objective=objective)
    measured, gradient = streamed(ToyPolicy(), config, task_of(config))
    at_reference = math.log(2) if objective == "dpo" else 0.5
    assert measured.loss / measured.losses == pytest.approx(at_reference, abs=1e-7)
    assert measured.right == measured.losses / 2  # nothing has gained, nothing has lost
    assert measured.better_reward == measured.worse_reward == 0.0
    assert gradient.norm() > 0


def test_a_pair_of_equal_pictures_has_no_gradient():
    config = PreferenceConfig(times=2)
    x_0 = torch.randn(GROUP // 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    policy = moved(ToyPolicy())
    _, gradient = streamed(policy, config, task_of(config, x_0.repeat_interleave(2, 0)))
    _, of_different = streamed(policy, config, task_of(config))
    assert gradient.norm() < 1e-5 * of_different.norm()


def test_small_beta_is_the_plain_difference_of_errors_and_large_beta_stops_what_is_learnt():
    policy = in_double(moved(ToyPolicy()))
    config = PreferenceConfig(beta=1e-3, times=2)
    task = task_of(config)
    small = streamed(policy, config, task)[1] / config.beta
    total = 0.0
    for i, sign in enumerate(ANSWERS.tolist()):
        for k in range(2):
            t, eps, x_0 = task.noised.t[k, i].item(), task.noised.eps[k, i], task.x_0[i]
            v = policy.velocity(((1 - t) * x_0 + t * eps)[None], t, task.example)[0]
            total = total + sign * (v - (eps - x_0)).square().mean()
    for parameter in policy.adapter.parameters():
        parameter.grad = None
    (0.5 * total / (4 * GROUP)).backward()  # sigma(0) = 1/2, beta / 2, and half as many pairs
    assert (small - gradient_of(policy)).norm() < 1e-3 * small.norm()
    # Pairs that are right are done, those that are wrong pull with all their weight.
    rewards = torch.tensor([1e5, 0.0, 0.0, 1e5], requires_grad=True)
    preference_losses(rewards, ANSWERS[:4] > 0, "dpo").sum().backward()
    assert rewards.grad is not None and rewards.grad.tolist() == [0.0, 0.0, -1.0, 1.0]


def test_the_reference_point_is_the_mean_but_not_below_zero_and_has_no_gradient():
    rewards = torch.tensor([2.0, -1.0, 0.5], requires_grad=True)
    point = reference_point(rewards)
    assert point.item() == 0.5 and not point.requires_grad
    assert reference_point(torch.tensor([-2.0, 1.0])).item() == 0.0
    losses = preference_losses(rewards, torch.tensor([True, False, True]), "kto")
    expected = [1 - 1 / (1 + math.exp(-x)) for x in (1.5, 1.5, 0.0)]
    assert losses.tolist() == pytest.approx(expected)


class OneNumber(torch.nn.Module):
    """Pictures are one number each; the model's are N(mean, 0.5^2), the reference's N(0, 0.5^2)."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(()))

    def velocity(self, x_t, t, example):
        t = torch.as_tensor(t).view(-1, 1)
        world = GaussianWorld(mean=0.0, std=0.5)
        slope = (t - (1 - t) * world.std**2) / world.variance_at(t)
        return -self.mean + slope * (x_t - (1 - t) * self.mean)


@every_objective
def test_the_optimum_moves_to_the_preferred_side_and_farther_with_a_smaller_beta(objective):
    settled = {}
    for beta in (2.0, 20.0):
        config = PreferenceConfig(objective=objective, beta=beta, times=1)
        policy, reference = OneNumber(), OneNumber()
        generator = torch.Generator().manual_seed(0)
        for _ in range(60):
            pairs = 0.5 * torch.randn(200, 2, 1, generator=generator)
            pairs = torch.stack([pairs.amax(1), pairs.amin(1)], 1)  # the larger is preferred
            x_0 = pairs.flatten(0, 1)
            answers = torch.tensor([1.0, -1.0]).repeat(200)
            t = torch.rand(1, 200, generator=generator).clamp_min(1e-3).repeat_interleave(2, 1)
            eps = torch.randn(1, 200, 1, generator=generator).repeat_interleave(2, 1)
            task = MatchingTask(Example.of(""), x_0, NoisedTimes(t, eps), answers)
            task = with_reference_velocity(Stream(reference.velocity, mixes_times=True), task)
            policy.mean.grad = None
            stream = Stream(policy.velocity, mixes_times=True)
            accumulate_preferences(stream, task, config, scale=1.0)
            with torch.no_grad():
                policy.mean -= 2.0 / beta * policy.mean.grad
        settled[beta] = policy.mean.item()
    assert settled[20.0] > 0.05 and settled[2.0] > 1.5 * settled[20.0]
