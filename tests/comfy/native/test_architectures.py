"""Every native flow architecture: exact gradients, ComfyUI's own velocity, nothing left behind."""

from __future__ import annotations

import re

import torch

from .models import (
    ARCHITECTURES,
    architecture_policy,
    double,
    models,
    noise,
    survives_errors_and_cancel,
    train,
    unchanged,
    velocity_at,
)


def _one_of_each_kind(names) -> list[str]:
    """Tensors whose layers differ by more than the number of their block."""
    return list({re.sub(r"\.\d+\.", ".#.", name, count=1): name for name in names}.values())


def _loss(velocity, latent):
    x_t, target = noise(2, 7, torch.float64, latent), noise(2, 8, torch.float64, latent)
    return ((velocity(x_t, 0.6, "p0") - target) ** 2).mean() * 10


def _numeric(loss, move, step: float = 3e-3) -> float:
    """Derivative of ``loss()`` by 4-point central differences; ``move(h)`` moves by h."""
    values = {}
    for k in (1, -1, 2, -2):
        move(k * step)
        values[k] = float(loss())
        move(-k * step)
    return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)


def _gradient_errors(policy) -> dict[str, float]:
    """Autograd against 4-point central differences along gradient plus random, per tensor."""
    tensors, latent = policy.adapter._tensors(), policy.latent_shape
    generator = torch.Generator().manual_seed(11)
    errors = {}

    def work(velocity):
        loss = _loss(velocity, latent)
        loss.backward()
        floor = 1e-4 * float(torch.stack([p.grad.norm() for p in _reached(policy)]).max())
        with torch.no_grad():
            for name in _one_of_each_kind(tensors):
                tensor = tensors[name]
                gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                random = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                direction = random / random.norm() + gradient / gradient.norm().clamp(min=1e-12)
                direction /= direction.norm()
                numeric = _numeric(
                    lambda: _loss(velocity, latent),
                    lambda h, tensor=tensor, d=direction: tensor.add_(d, alpha=h),
                )
                exact = float((gradient * direction).sum())
                errors[name] = abs(numeric - exact) / max(abs(exact), floor)

    policy.run(work)
    return errors


def _reached(policy):
    return [p for p in policy.adapter.parameters() if p.grad is not None]


def _float64_policy(lab, name, **options):
    """A float64 policy whose B factors are not zero, so that A has gradients too."""
    with torch.inference_mode():  # as in an execute(): the weights are inference tensors
        policy = architecture_policy(lab, name, double(models.build(name)), **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in policy.adapter.parameters():
        parameter.data = 0.2 * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        )
    return policy


def test_gradients_equal_finite_differences(lab):
    for name in ARCHITECTURES:
        policy = _float64_policy(lab, name)
        errors = _gradient_errors(policy)
        worst = max(errors, key=errors.get)
        print(name, len(errors), "tensors, worst relative error", errors[worst], worst)
        assert errors[worst] <= 1e-3, (name, worst, errors[worst])
        idle = len(policy.adapter.parameters()) - len(_reached(policy))
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
        policy = _float64_policy(lab, name, negative=negative, cfg=3.0)

        def work(velocity, policy=policy):
            _loss(velocity, policy.latent_shape).backward()
            reached = _reached(policy)
            length = float(torch.stack([p.grad.norm() for p in reached]).norm())
            directions = [p.grad / length for p in reached]

            def move(h):
                for parameter, direction in zip(reached, directions, strict=True):
                    parameter.add_(direction, alpha=h)

            with torch.no_grad():
                numeric = _numeric(lambda: _loss(velocity, policy.latent_shape), move)
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
