"""Quantised files are trained like the float32 file that holds the same numbers."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path

import pytest
import torch
from environment import package
from safetensors.torch import load_file, save_file

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

KERNELS = {
    "fp8": ("float8_e4m3fn", {}),
    "nvfp4": ("nvfp4", {}),
    "mxfp8": ("mxfp8", {}),
    "int8": ("int8_tensorwise", {}),
    "int8, rotated": ("int8_tensorwise", {"convrot": True, "convrot_groupsize": 64}),
    "four bits, rotated": ("convrot_w4a4", {"convrot_groupsize": 64}),
}
"""Kind of file -> what newer ComfyUI writes beside each of its layers."""

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


def _kinds() -> list[str]:
    """Those that this ComfyUI can load and this comfy-kitchen can make; at least one, or the test
    is skipped where ComfyUI is too old, and fails where comfy-kitchen is missing."""
    from comfy import quant_ops

    if "comfy_kitchen" not in Path(str(quant_ops.__file__)).read_text(encoding="utf-8"):
        pytest.skip("this ComfyUI does not use comfy-kitchen")
    package("comfy_kitchen")
    kinds = [kind for kind, (form, _) in KERNELS.items() if form in quant_ops.QUANT_ALGOS]
    assert kinds
    return kinds


def _pair(kind: str):
    """A quantised MODEL, and one of the same numbers in float32."""
    import comfy.sd
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    form, extras = KERNELS[kind]
    options = dict(extras)
    if form == "int8_tensorwise":
        options |= {"is_weight": True, "per_channel": bool(extras)}
    if form.startswith("float8"):
        options |= {"scale": "recalculate"}
    note = torch.tensor(list(json.dumps({"format": form, **extras}).encode()), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.safetensors") for number in range(2)]
        write_sd3(files[0])
        plain = load_file(files[0])
        packed = dict(plain)
        for name, tensor in plain.items():
            if "block" in name and tensor.ndim == 2:
                layout = QUANT_ALGOS[form]["comfy_tensor_layout"]
                numbers = QuantizedTensor.from_float(packed.pop(name), layout, **options)
                packed |= numbers.state_dict(name)
                packed[f"{name.removesuffix('.weight')}.comfy_quant"] = note.clone()
                plain[name] = numbers.dequantize().float()
        for file, state in zip(files, (packed, plain), strict=True):
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
        return [comfy.sd.load_diffusion_model(str(file)) for file in files]


def test_every_kernel_has_the_derivative_of_the_weight_it_stands_for(lab):
    differentiable = lab.module("nodes.bridge.quantised").differentiable
    with torch.inference_mode():
        pairs = {kind: _pair(kind) for kind in _kinds()}
    for kind, models_ in pairs.items():
        packed, plain = (m.model.diffusion_model.joint_blocks[0].x_block.mlp.fc1 for m in models_)
        weight = lab.module("nodes.bridge.autograd").alias(plain.weight.data)
        x, slope = (noise(2, seed, latent=(5, n)) for seed, n in ((1, 64), (2, 256)))
        x.requires_grad_(True)
        y = differentiable(packed, packed.forward)(x)
        y.backward(slope)
        assert torch.allclose(x.grad, slope @ weight, rtol=1e-5, atol=1e-6), kind
        with torch.no_grad():  # rollouts compute the same
            assert torch.equal(differentiable(packed, packed.forward)(x.detach()), y.detach()), kind


def test_files_of_every_kernel_are_trained_pass_the_self_test_and_stay_as_they_were(lab):
    grid = lab.module("chunk_grpo_core.method.schedule").shifted_grid(6, 3.0)
    sde = lab.module("chunk_grpo_core.method.rules").SdeConfig(rule="flow", eta=0.7)
    roll_out = lab.module("chunk_grpo_core.measure.sampling").roll_out
    self_test = lab.module("chunk_grpo_core.train.self_test.run").self_test
    with torch.inference_mode():
        for kind in _kinds():
            model, plain = _pair(kind)
            with unchanged(model, models.conditioning("sd3", 1), LATENT):
                policy = architecture_policy(lab, "sd3", model)
                with torch.inference_mode(False):
                    groups = roll_out(policy, ["p0", "p0"], grid, sde, group_size=4, seeds=[1, 2])
                    said = policy.run(
                        lambda velocity, policy=policy, groups=groups: self_test(
                            velocity, policy.adapter.parameters(), groups
                        )
                    )
                losses = train(policy, 4)
            print(kind, said)
            assert losses[-1] < losses[0], (kind, losses)
            if kind.startswith("four bits"):  # multiplied as if they were float32
                for a, b in zip(_gradients(lab, model), _gradients(lab, plain), strict=True):
                    assert float((a - b).norm() / b.norm()) < 1e-4, kind


def test_errors_and_cancel_leave_files_of_every_kernel_as_they_were(lab):
    with torch.inference_mode():
        for kind in _kinds():
            model, _ = _pair(kind)
            policy = architecture_policy(lab, "sd3", model)
            survives_errors_and_cancel(policy, model, models.conditioning("sd3", 1))


def test_a_lora_that_comfyui_merges_keeps_the_rotation_of_a_file_and_is_trained_upon(lab):
    """Each kind of file against the same numbers in float32 with the same LoRA merged."""
    import comfy.model_management as memory
    import comfy.sd

    layer = "diffusion_model.joint_blocks.0.x_block.mlp.fc1"
    factors = {"A": noise(4, 1, latent=(64,)), "B": noise(256, 2, latent=(4,))}
    lora = {f"{layer}.lora_{side}.weight": 0.1 * factor for side, factor in factors.items()}
    with torch.inference_mode():
        for kind in _kinds():
            weights, velocities = [], []
            for model in _pair(kind):
                merged, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
                memory.load_models_gpu([merged])
                weight = merged.get_model_object(f"{layer}.weight").data
                is_packed = hasattr(weight, "__tensor_flatten__")
                weights.append(weight.dequantize().float() if is_packed else weight.clone())
                velocities.append(_gradients(lab, merged)[0])
                merged.detach()
            rounding = 0.25 if "four bits" in kind or "4" in kind else 0.06
            assert float((weights[0] - weights[1]).norm() / weights[1].norm()) < rounding, kind
            assert float((velocities[0] - velocities[1]).norm() / velocities[1].norm()) < 0.1, kind


class _Packed(torch.Tensor):
    """Whole numbers and a scale on them, as other packs (GGUF) keep weights."""

    @staticmethod
    def of(weight: torch.Tensor) -> _Packed:
        scale = weight.abs().max() / 127.0
        packed = (weight / scale).round().to(torch.int8).as_subclass(_Packed)
        packed.step = float(scale)
        return packed

    def plain(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).float() * self.step


def test_weights_in_a_tensor_class_of_another_pack_are_trained(lab):
    """As those that ComfyUI-GGUF loads: made in an execute(), with notes on them."""
    with torch.inference_mode():
        packed, plain = models.build("sd3"), models.build("sd3")
        block = r"joint_blocks\.\d+\..*\.(qkv|fc1)"
        for name, layer in packed.model.diffusion_model.named_modules():
            if re.fullmatch(block, name):
                weight = _Packed.of(layer.weight.data)
                layer.weight = torch.nn.Parameter(weight, requires_grad=False)
                layer.weight.step = weight.step
                layer.forward = functools.partial(_multiply, layer)
                twin = plain.model.diffusion_model.get_submodule(name)
                twin.weight.copy_(layer.weight.plain())
        assert isinstance(layer.weight, torch.nn.Parameter)
        for a, b in zip(_gradients(lab, packed), _gradients(lab, plain), strict=True):
            assert torch.equal(a, b)
        with unchanged(packed, models.conditioning("sd3", 1), LATENT):
            losses = train(architecture_policy(lab, "sd3", packed), 4)
        assert losses[-1] < losses[0]


def _multiply(layer, x):
    return torch.nn.functional.linear(x, layer.weight.plain(), layer.bias)
