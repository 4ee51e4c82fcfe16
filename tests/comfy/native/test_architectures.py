"""Every native flow architecture: exact gradients, ComfyUI's own velocity, nothing left behind."""

from __future__ import annotations

import torch

from ..tiny_architectures.models import ARCHITECTURES
from .gradients import float64_policy, gradient_errors, loss_at, numeric_derivative, reached
from .models import (
    architecture_policy,
    models,
    noise,
    survives_errors_and_cancel,
    train,
    unchanged,
    velocity_at,
)


def test_gradients_equal_finite_differences(lab):
    for name in ARCHITECTURES:
        policy = float64_policy(lab, name)
        errors = gradient_errors(policy)
        worst = max(errors, key=errors.get)
        print(name, len(errors), "tensors, worst relative error", errors[worst], worst)
        assert errors[worst] <= 1e-3, (name, worst, errors[worst])
        idle = len(policy.adapter.parameters()) - len(reached(policy))
        assert idle <= 16, (name, idle)  # text branch of a last block


def test_a_policy_without_a_lora_samples_every_architecture_to_the_same_bits(lab):
    with torch.inference_mode():
        for name in ARCHITECTURES:
            model, work = models.build(name), velocity_at(latent=ARCHITECTURES[name].latent)
            alone = architecture_policy(lab, name, model, targets=None)
            assert torch.equal(alone.run(work), architecture_policy(lab, name, model).run(work))


def test_gradients_with_guidance_equal_finite_differences(lab):
    """Along one direction of all factors at once, the gradient's."""
    for name in ARCHITECTURES:
        negative = models.conditioning(name, 2, tokens=4)
        policy = float64_policy(lab, name, negative=negative, cfg=3.0)

        def work(velocity, policy=policy):
            loss_at(velocity, policy.latent_shape).backward()
            factors = reached(policy)
            length = float(torch.stack([p.grad.norm() for p in factors]).norm())
            directions = [p.grad / length for p in factors]

            def move(h):
                for parameter, direction in zip(factors, directions, strict=True):
                    parameter.add_(direction, alpha=h)

            with torch.no_grad():
                numeric = numeric_derivative(lambda: loss_at(velocity, policy.latent_shape), move)
            return abs(numeric - length) / length

        error = policy.run(work)
        assert error <= 1e-3, (name, error)


def _unchanged(name, model):
    return unchanged(model, models.conditioning(name, 1), ARCHITECTURES[name].latent)


def test_training_twice_leaves_the_model_as_it_was(lab):
    with torch.inference_mode():
        for name in ARCHITECTURES:
            model = models.build(name)
            for _ in range(2):
                with _unchanged(name, model):
                    policy = architecture_policy(lab, name, model, targets="attention+mlp")
                    losses = train(policy, 4)
                    assert losses[-1] < losses[0], (name, losses)


def test_errors_and_cancel_leave_the_model_as_it_was(lab):
    with torch.inference_mode():
        for name in ARCHITECTURES:
            model = models.build(name)
            policy = architecture_policy(lab, name, model)
            survives_errors_and_cancel(policy, model, models.conditioning(name, 1))


def test_rollout_and_training_forward_agree_bit_for_bit(lab):
    """The ratio of the first update is exactly 1."""
    with torch.inference_mode():
        for name, entry in ARCHITECTURES.items():
            for cfg in (1.0, 3.0):
                negative = models.conditioning(name, 2, tokens=4)
                policy = architecture_policy(lab, name, negative=negative, cfg=cfg)
                train(policy, 1)
                x_t = noise(2, latent=entry.latent)

                def work(velocity, x_t=x_t):
                    with torch.no_grad():
                        rolled_out = velocity(x_t, 0.6, "p0")
                    trained = velocity(x_t, 0.6, "p0")
                    return trained.requires_grad and torch.equal(trained, rolled_out)

                assert policy.run(work), (name, cfg)
