"""The branch of a LoRA: exact where the layer is, in bfloat16 where that is, gradients included."""

from __future__ import annotations

import pytest
import torch
from small_flux import latents, shaken, small_flux, small_policy
from torch.nn.functional import linear

from chunk_grpo_core.lora.low_rank import add_low_rank

SCALE = 1.5


def parts(dtype, shape=(2, 5)):
    """y, x, A, B of a layer with 16 inputs and 24 outputs."""
    generator = torch.Generator().manual_seed(0)

    def random(*size):
        return torch.randn(*size, generator=generator)

    a, b = random(4, 16).requires_grad_(), random(24, 4).requires_grad_()
    return random(*shape, 24).to(dtype), random(*shape, 16).to(dtype).requires_grad_(), a, b


def exact(y, x, a, b):
    """The same in float64."""
    y, x, a, b = (tensor.detach().double().requires_grad_() for tensor in (y, x, a, b))
    return y + SCALE * linear(linear(x, a), b), (x, a, b)


@pytest.mark.parametrize("shape", [(2, 5), (7,)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)],
)
def test_sum_and_gradients_are_those_of_float64_up_to_rounding(dtype, tolerance, shape):
    y, x, a, b = parts(dtype, shape)
    expected, leaves = exact(y, x, a, b)
    found = add_low_rank(y, x, a, b, SCALE)
    assert found.dtype == dtype and found.shape == y.shape
    assert float((found - expected).detach().norm() / expected.detach().norm()) < tolerance
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    found.backward(weight.to(dtype))
    expected.backward(weight.to(dtype).double())
    for leaf, wanted in zip((x, a, b), leaves, strict=True):
        assert leaf.grad.dtype == leaf.dtype
        assert float((leaf.grad - wanted.grad).norm() / wanted.grad.norm()) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_gives_the_same_bits(dtype):
    y, x, a, b = parts(dtype)
    expected = add_low_rank(y.clone(), x, a, b, SCALE)
    with torch.no_grad():
        assert torch.equal(add_low_rank(y, x, a, b, SCALE, in_place=True), expected)


def test_without_in_place_the_output_of_the_layer_stays():
    y, x, a, b = parts(torch.bfloat16)
    before = y.clone()
    add_low_rank(y, x, a, b, SCALE)
    assert torch.equal(y, before)


def narrow_policy():
    """The small FLUX in bfloat16, with a LoRA that does something."""
    policy = small_policy(small_flux().to(torch.bfloat16))
    shaken(policy.adapter)
    return policy


def test_a_bfloat16_model_keeps_no_float32_copies_of_activations_for_its_lora():
    policy, kept = narrow_policy(), []

    def remember(tensor):
        kept.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        policy.run(lambda velocity: velocity(latents(), 0.7, "a fox").sum().backward())
    inside = [dtype for dtype, shape in kept if shape and shape[-1] in {64, 256, 320}]
    assert inside and set(inside) == {torch.bfloat16}


def test_calls_with_and_without_gradients_have_the_same_bits():
    policy = narrow_policy()

    def work(velocity):
        with torch.no_grad():
            return velocity(latents(), 0.7, "a fox"), velocity(latents(), 0.7, "a fox")

    def with_gradients(velocity):
        return velocity(latents(), 0.7, "a fox").detach()

    first, again = policy.run(work)
    assert torch.equal(first, again)
    assert torch.equal(policy.run(with_gradients), first)
