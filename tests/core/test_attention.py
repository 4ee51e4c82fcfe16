"""Training keeps PyTorch from choosing cuDNN's attention: its gradients are wrong on some cards."""

from __future__ import annotations

import pytest
import torch
from small_flux import latents, small_policy
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from chunk_grpo_core.models.attention import without_cudnn_attention
from chunk_grpo_core.models.flux.config import FluxModel


def is_allowed():
    return torch.backends.cuda.cudnn_sdp_enabled()


def test_a_policy_runs_without_it_and_puts_the_switch_back():
    assert is_allowed()
    assert small_policy().run(lambda velocity: is_allowed()) is False
    assert is_allowed()

    def fail(velocity):
        velocity(latents(), 0.5, "a fox").sum().backward()
        raise KeyError

    with pytest.raises(KeyError):
        small_policy().run(fail)
    assert is_allowed()


def test_a_switch_that_was_off_stays_off():
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with without_cudnn_attention():
            pass
        assert not is_allowed()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_it_cannot_be_chosen():
    with pytest.raises(ValueError, match="model.attention is 'native-cudnn'; it must be one of"):
        FluxModel(attention="native-cudnn")


def gradients_behind_a_concatenation(inputs):
    """Of query, key and value, as in FLUX.1's single blocks: 1536 tokens, 24 heads of 128."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    heads = (tensor.permute(0, 2, 1, 3) for tensor in leaves)
    out = scaled_dot_product_attention(*heads).permute(0, 2, 1, 3).flatten(2)
    joined = torch.cat([out, torch.zeros_like(out)], dim=2)
    generator = torch.Generator(joined.device).manual_seed(1)
    weight = torch.randn(joined.shape, device=joined.device, generator=generator)
    joined.backward(weight.to(joined.dtype))
    return torch.cat([leaf.grad.flatten() for leaf in leaves]).float()


@pytest.mark.gpu
def test_the_kernel_that_is_chosen_on_cuda_has_the_right_gradient():
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [
        torch.randn(1, 1536, 24, 128, device="cuda", generator=generator).bfloat16()
        for _ in range(3)
    ]
    with sdpa_kernel(SDPBackend.MATH):
        expected = gradients_behind_a_concatenation(inputs)
    with without_cudnn_attention():
        found = gradients_behind_a_concatenation(inputs)
    assert float((found - expected).norm() / expected.norm()) < 0.01
