"""Gradients through native blocks, against finite differences in float64."""

from __future__ import annotations

import re

import torch

from .models import architecture_policy, double, models, noise


def one_of_each_kind(names) -> list[str]:
    """Tensors whose layers differ by more than the number of their block."""
    return list({re.sub(r"\.\d+\.", ".#.", name, count=1): name for name in names}.values())


def loss_at(velocity, latent):
    x_t, target = noise(2, 7, torch.float64, latent), noise(2, 8, torch.float64, latent)
    return ((velocity(x_t, 0.6, "p0") - target) ** 2).mean() * 10


def numeric_derivative(loss, move, step: float = 3e-3) -> float:
    """Derivative of ``loss()`` by 4-point central differences; ``move(h)`` moves by h."""
    values = {}
    for k in (1, -1, 2, -2):
        move(k * step)
        values[k] = float(loss())
        move(-k * step)
    return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)


def gradient_errors(policy) -> dict[str, float]:
    """Autograd against 4-point central differences along gradient plus random, per tensor."""
    tensors, latent = policy.adapter._tensors(), policy.latent_shape
    generator = torch.Generator().manual_seed(11)
    errors = {}

    def work(velocity):
        loss = loss_at(velocity, latent)
        loss.backward()
        floor = 1e-4 * float(torch.stack([p.grad.norm() for p in reached(policy)]).max())
        with torch.no_grad():
            for name in one_of_each_kind(tensors):
                tensor = tensors[name]
                gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                random = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                direction = random / random.norm() + gradient / gradient.norm().clamp(min=1e-12)
                direction /= direction.norm()
                numeric = numeric_derivative(
                    lambda: loss_at(velocity, latent),
                    lambda h, tensor=tensor, d=direction: tensor.add_(d, alpha=h),
                )
                exact = float((gradient * direction).sum())
                errors[name] = abs(numeric - exact) / max(abs(exact), floor)

    policy.run(work)
    return errors


def reached(policy):
    return [p for p in policy.adapter.parameters() if p.grad is not None]


def float64_policy(lab, name, **options):
    """A float64 policy whose B factors are not zero, so that A has gradients too."""
    with torch.inference_mode():  # as in an execute(): the weights are inference tensors
        policy = architecture_policy(lab, name, double(models.build(name)), **options)
    generator = torch.Generator().manual_seed(3)
    for parameter in policy.adapter.parameters():
        parameter.data = 0.2 * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        )
    return policy
