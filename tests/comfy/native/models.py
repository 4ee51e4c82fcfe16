"""What the tests inside ComfyUI share: random MODELs, conditioning, and snapshots of a MODEL."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import torch

from ..tiny_architectures import models
from ..tiny_architectures.models import fill
from ..tiny_architectures.state import snapshot

LATENT = (16, 8, 8)
LORA_RANK, LORA_SCALE = 4, 2.0  # of random_lora


def random_model(lab, dtype=torch.float32, cast=None):
    """A MODEL of the tiny architecture with random weights; bit-equal in every ComfyUI version
    except for the order of keys."""
    patcher = lab.module("nodes.bridge.tiny").empty_model(dtype, cast)
    fill(patcher.model.diffusion_model)
    return patcher


def quantised_model(lab):
    """A MODEL whose block layers hold fp8 QuantizedTensors; they are no ``nn.Linear``."""
    import comfy.ops

    tiny = lab.module("nodes.bridge.tiny")
    plain = random_model(lab).model.diffusion_model
    linears = lab.module("nodes.bridge.adapter")._linears(plain)
    marked = "disabled" in comfy.ops.mixed_precision_ops.__code__.co_varnames  # newer file format

    class Config(tiny._Config):
        if marked:
            quant_config = {"mixed_ops": True}
        else:
            layer_quant_config = {n: {"format": "float8_e4m3fn", "params": {}} for n in linears}

    original, tiny._Config = tiny._Config, Config
    try:
        patcher = tiny.empty_model(torch.float32, torch.float32)
    finally:
        tiny._Config = original
    state = {}
    for name, tensor in plain.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        state[name] = tensor.clone()
        if layer in linears and leaf == "weight":
            scale = tensor.abs().max() / 448
            state[name] = (tensor / scale).to(torch.float8_e4m3fn)
            state[f"{layer}.weight_scale"] = scale.float()
            if marked:
                note = json.dumps({"format": "float8_e4m3fn"}).encode()
                state[f"{layer}.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
    patcher.model.diffusion_model.load_state_dict(state, strict=False)
    layer = patcher.model.diffusion_model.double_blocks[0].img_attn.qkv
    assert not isinstance(layer, torch.nn.Linear)
    assert type(layer.weight.data).__name__ == "QuantizedTensor"
    return patcher


def double(patcher):
    """Turn a MODEL into float64 throughout, for finite differences."""
    patcher.model.diffusion_model.double()
    for module in patcher.model.diffusion_model.modules():
        if module.__dict__.get("dtype") is torch.float32:
            module.dtype = torch.float64
    patcher.model.diffusion_model.dtype = torch.float64
    patcher.model.manual_cast_dtype = torch.float64
    return patcher


def random_conditioning(seed: int = 1, tokens: int = 8) -> list[list[Any]]:
    """One CONDITIONING with random contents."""
    generator = torch.Generator().manual_seed(seed)
    cross_attn = torch.randn(1, tokens, 96, generator=generator)
    return [[cross_attn, {"pooled_output": torch.randn(1, 64, generator=generator)}]]


def _lora(lab, targets: str | None):
    """Size and place of a LoRA; none for None."""
    config = lab.module("chunk_grpo_core.lora.adapter").LoraConfig
    return targets and config(rank=4, alpha=8.0, targets=targets)


def architecture_policy(lab, name: str, model=None, targets: str | None = "all-linear", **options):
    """A NativePolicy on a random MODEL of any architecture; its prompt is ``"p0"``."""
    return lab.module("nodes.bridge.policy").NativePolicy(
        model or models.build(name),
        options.pop("vae", None),
        {"p0": options.pop("prompt", None) or models.conditioning(name, 1)},
        models.ALL[name].latent,
        _lora(lab, targets),
        0,
        **options,
    )


def make_policy(lab, model, prompts: int = 1, targets: str | None = "all-linear", **options):
    """A NativePolicy on random conditioning; prompt i is called ``"pi"`` and has 8 - i tokens."""
    conditioning = {f"p{i}": random_conditioning(i + 1, 8 - i) for i in range(prompts)}
    policy, lora = lab.module("nodes.bridge.policy").NativePolicy, _lora(lab, targets)
    return policy(model, options.pop("vae", None), conditioning, LATENT, lora, 0, **options)


def noise(batch: int, seed: int = 5, dtype=torch.float32, latent: tuple[int, ...] = LATENT):
    """Noise of the tiny latents."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *latent, generator=generator).to(dtype)


def sample(model, conditioning, steps: int = 3, *, latent=LATENT, cfg: float = 1.0, negative=None):
    """Ordinary sampling with ComfyUI's own Euler sampler."""
    import comfy.sample

    return comfy.sample.sample(
        model, noise(2, latent=latent), steps, cfg, "euler", "simple", conditioning,
        negative or conditioning, torch.zeros(2, *latent), disable_pbar=True, seed=0,
    )  # fmt: skip


@contextlib.contextmanager
def unchanged(model, conditioning, latent=LATENT) -> Iterator[None]:
    """Bytes, identities, flags, hooks, options and pictures of a MODEL are the same afterwards."""
    import comfy.model_management

    images = sample(model, conditioning, latent=latent)
    before = snapshot(model)  # of a loaded model: loading leaves marks of its own
    yield
    after = snapshot(model)
    assert after == before, {key for key in before if before[key] != after[key]}
    assert torch.equal(sample(model, conditioning, latent=latent), images)
    assert not getattr(comfy.model_management, "in_training", False)


def survives_errors_and_cancel(policy, model, conditioning) -> None:
    """Stop a training in its forward and its backward pass; the MODEL stays and trains at once."""
    import comfy.model_management as memory

    policy.adapter._activations.give_up()  # so that backward runs blocks, which look for a Cancel
    x_t = noise(1, latent=policy.latent_shape)

    def fail(velocity):
        velocity(x_t, 0.5, "p0").mean().backward()
        raise ArithmeticError("stopped on purpose")

    def cancel_forward(velocity):
        memory.interrupt_current_processing()
        velocity(x_t, 0.5, "p0")

    def cancel_backward(velocity):
        loss = velocity(x_t, 0.5, "p0").mean()
        memory.interrupt_current_processing()
        loss.backward()

    cancelled = memory.InterruptProcessingException
    for work, error in (
        (fail, ArithmeticError),
        (cancel_forward, cancelled),
        (cancel_backward, cancelled),
    ):
        with unchanged(model, conditioning, policy.latent_shape):
            try:
                policy.run(work)
            except error:
                pass
            else:
                raise AssertionError(f"{work.__name__} went unnoticed")
    assert len(train(policy)) == 2


def velocity_at(prompt: str = "p0", t: float = 0.6, batch: int = 2, latent=LATENT):
    """Work for ``policy.run``: the velocity of fixed latents."""

    def work(velocity):
        with torch.no_grad():
            return velocity(noise(batch, latent=latent), t, prompt)

    return work


def train(policy, steps: int = 2, learning_rate: float = 2e-3) -> list[float]:
    """Move the velocity of ``"p0"`` by a few real updates; returns the losses."""
    optimizer = torch.optim.AdamW(policy.adapter.parameters(), lr=learning_rate)

    start, fresh = (noise(2, seed, latent=policy.latent_shape) for seed in (5, 9))

    def work(velocity):
        losses = []
        for _ in range(steps):
            with torch.no_grad():
                x_t = velocity(start, 1.0, "p0") * 0.1 + fresh
            with policy.adapter.disabled(), torch.no_grad():
                reference = velocity(x_t, 0.7, "p0")
            loss = (velocity(x_t, 0.7, "p0") - reference - 1.0).pow(2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    return policy.run(work)


def every_kind_of_weights(lab):
    """MODELs with all kinds of weights that work on a CPU."""
    yield random_model(lab)
    yield random_model(lab, torch.bfloat16)
    yield random_model(lab, torch.bfloat16, torch.float32)
    yield random_model(lab, torch.float8_e4m3fn, torch.bfloat16)
    yield quantised_model(lab)


def apply_lora(lab, *arguments, **options):
    """The MODEL that the node Apply LoRA gives."""
    return lab.module("nodes.bridge.applied").apply_lora(*arguments, **options)


def random_lora(lab, seed=0, std=0.05):
    """A LORA_MODEL on every linear layer of the blocks, far from the identity."""
    linears = lab.module("nodes.bridge.adapter")._linears(random_model(lab).model.diffusion_model)
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for name, layer in linears.items():
        a, b = (LORA_RANK, layer.in_features), (layer.out_features, LORA_RANK)
        adapter[f"{name}.lora_A.weight"] = std * torch.randn(a, generator=generator)
        adapter[f"{name}.lora_B.weight"] = std * torch.randn(b, generator=generator)
    return lab.module("chunk_grpo_core.lora.files").native_lora(adapter, LORA_SCALE * LORA_RANK)


def merge_lora(model, lora, strength=1.0):
    """The MODEL that ComfyUI's own loader gives."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]


def distance(a, b):
    """Largest absolute difference."""
    return float((a.double() - b.double()).abs().max())


def assert_euler_equals_comfyui(policy, model, conditioning, **guidance):
    """Euler steps along our velocity give the latents of ComfyUI's own sampler."""
    import comfy.samplers

    latent = policy.latent_shape
    want = sample(model, conditioning, 4, latent=latent, **guidance)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 4).tolist()
    assert sigmas[0] == 1.0 and sigmas[-1] == 0.0

    def work(velocity):
        x_t = noise(2, latent=latent)
        with torch.no_grad():
            for t, s in zip(sigmas[:-1], sigmas[1:], strict=True):
                x_t = x_t + (s - t) * velocity(x_t, t, "p0")
        return model.model.process_latent_out(x_t)

    got = policy.run(work)
    error = float((got - want).abs().max() / want.abs().max())
    assert error < 1e-4, (type(model.model).__name__, guidance, error)
