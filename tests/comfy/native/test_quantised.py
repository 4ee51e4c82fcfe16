"""Quantised files are trained like the float32 file that holds the same numbers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ..tiny_architectures.files import FORMATS, write_sd3
from .models import (
    architecture_policy,
    models,
    noise,
    survives_errors_and_cancel,
    train,
    unchanged,
    velocity_at,
)

LATENT = models.ARCHITECTURES["sd3"].latent


def _loaded(weights: str):
    """The MODEL that UNETLoader makes of a file."""
    import comfy.sd

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.safetensors")
        write_sd3(path, weights)
        return comfy.sd.load_diffusion_model(str(path))


def _gradients(lab, model):
    """Velocity and LoRA gradients at fixed factors that are not zero."""
    policy = architecture_policy(lab, "sd3", model)

    def work(velocity):
        generator = torch.Generator().manual_seed(3)
        for parameter in policy.adapter.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        velocities = velocity(noise(2, latent=LATENT), 0.6, "p0")
        velocities.square().mean().backward()
        return velocities.detach()

    return [policy.run(work), *(p.grad for p in policy.adapter.parameters())]


def test_gradients_are_those_of_the_same_numbers_in_float32(lab):
    """A CPU has no fp8 product: ComfyUI multiplies by weight times scale, in float32."""
    with torch.inference_mode():
        plain, *quantised = (_gradients(lab, _loaded(weights)) for weights in FORMATS)
        for found in quantised:
            for a, b in zip(found, plain, strict=True):
                assert float((a - b).norm() / b.norm()) < 1e-4


def test_quantised_files_are_trained_and_left_as_they_were(lab):
    with torch.inference_mode():
        for weights in FORMATS[1:]:
            model = _loaded(weights)
            kinds = {p.dtype for p in model.model.diffusion_model.parameters()}
            layer = model.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1
            is_quantised = type(layer.weight.data).__name__ == "QuantizedTensor"
            # Older ComfyUI keeps plain fp8 tensors of the older format.
            is_plain_fp8 = weights == "scaled fp8" and torch.float8_e4m3fn in kinds
            assert is_quantised or is_plain_fp8, (weights, kinds)
            with unchanged(model, models.conditioning("sd3", 1), LATENT):
                policy = architecture_policy(lab, "sd3", model)
                losses = train(policy, 4)
                assert losses[-1] < losses[0], (weights, losses)


def test_a_policy_without_a_lora_samples_quantised_files_to_the_same_bits(lab):
    with torch.inference_mode():
        for weights in FORMATS:
            model, work = _loaded(weights), velocity_at(latent=LATENT)
            alone = architecture_policy(lab, "sd3", model, targets=None)
            assert torch.equal(alone.run(work), architecture_policy(lab, "sd3", model).run(work))


def test_errors_and_cancel_leave_quantised_files_as_they_were(lab):
    with torch.inference_mode():
        for weights in FORMATS[1:]:
            model = _loaded(weights)
            policy = architecture_policy(lab, "sd3", model)
            survives_errors_and_cancel(policy, model, models.conditioning("sd3", 1))
