"""The flow models of pictures beyond the six that the other tests train, as far as this ComfyUI
knows them: exact gradients, ComfyUI's own velocity, nothing left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..tiny_architectures.models import OTHERS, is_there
from .gradients import float64_policy, gradient_errors, reached
from .models import (
    architecture_policy,
    assert_euler_equals_comfyui,
    models,
    noise,
    survives_errors_and_cancel,
    train,
    unchanged,
)


def _there() -> list[str]:
    there = [name for name in OTHERS if is_there(name)]
    print("not in this ComfyUI:", sorted(OTHERS.keys() - set(there)))
    assert {"lumina2", "auraflow", "hunyuan_image"} <= set(there)
    return there


@contextlib.contextmanager
def _frozen_routing(policy) -> Iterator[None]:
    """HiDream's tokens stay with their experts: a difference over a jump is no derivative."""
    gates = [
        m for m in policy._model.model.diffusion_model.modules() if hasattr(m, "norm_topk_prob")
    ]
    for gate in gates:
        gate.forward = _frozen(gate)
    yield
    for gate in gates:
        del gate.forward


def _frozen(gate):
    experts = []

    def forward(states):
        if not experts:
            with torch.no_grad():
                experts.append(type(gate).forward(gate, states)[0])
        scores = (states.reshape(-1, states.shape[-1]) @ gate.weight.T.to(states)).softmax(-1)
        return experts[0], scores.gather(1, experts[0]), None

    return forward


def test_gradients_equal_finite_differences(lab):
    for name in _there():
        policy = float64_policy(lab, name)
        with _frozen_routing(policy):
            errors = gradient_errors(policy)
        worst = max(errors, key=errors.__getitem__)
        idle = len(policy.adapter.parameters()) - len(reached(policy))
        print(name, len(errors), "tensors, worst", errors[worst], worst, idle, "idle")
        assert errors[worst] <= 1e-3, (name, worst, errors[worst])
        assert idle <= 16, (
            name,
            idle,
        )  # text branch of a last block, refiner of reference pictures


def test_euler_steps_are_comfyuis_own_sampling(lab):
    with torch.inference_mode():
        for name in _there():
            model = models.build(name)
            sigmas = _sigmas(model)
            policy = architecture_policy(lab, name, model, sigmas=sigmas)
            assert_euler_equals_comfyui(policy, model, models.conditioning(name, 1))


def _sigmas(model) -> list[float]:
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, "simple", 4).tolist()


def test_rollouts_are_the_training_forward_bit_for_bit(lab):
    with torch.inference_mode():
        for name in _there():
            policy = architecture_policy(lab, name)
            train(policy, 1)
            x_t = noise(2, latent=policy.latent_shape)

            def work(velocity, x_t=x_t):
                with torch.no_grad():
                    rolled_out = velocity(x_t, 0.6, "p0")
                return torch.equal(velocity(x_t, 0.6, "p0"), rolled_out)

            assert policy.run(work), name


def test_training_leaves_the_model_as_it_was(lab):
    with torch.inference_mode():
        for name in _there():
            model = models.build(name)
            with unchanged(model, models.conditioning(name, 1), OTHERS[name].latent):
                policy = architecture_policy(lab, name, model, targets="attention+mlp")
                losses = train(policy, 4)
                assert losses[-1] < losses[0], (name, losses)


def test_errors_and_cancel_leave_the_model_as_it_was(lab):
    with torch.inference_mode():
        for name in _there():
            model = models.build(name)
            policy = architecture_policy(lab, name, model)
            survives_errors_and_cancel(policy, model, models.conditioning(name, 1))
