"""Apply LoRA with what surrounds it: the base MODEL, training on top, LoRAs that do not fit."""

from __future__ import annotations

import torch

from .models import (
    LORA_RANK,
    apply_lora,
    distance,
    double,
    every_kind_of_weights,
    make_policy,
    merge_lora,
    noise,
    random_conditioning,
    random_lora,
    random_model,
    sample,
    snapshot,
    train,
)


def _refused(build, *words):
    try:
        build()
    except ValueError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"accepted: {words}")


def test_the_input_model_is_as_it_was(lab):
    """Also after an error inside the network, and with other MODELs sampled in between."""
    import comfy.model_management as memory

    with torch.inference_mode():
        for model in every_kind_of_weights(lab):
            lora = random_lora(lab)
            images = sample(model, random_conditioning())
            before = snapshot(model)  # of a loaded model: loading leaves marks of its own
            applied = apply_lora(lab, model, lora)
            first = sample(applied, random_conditioning())
            assert snapshot(model) == before
            memory.interrupt_current_processing()
            try:
                sample(applied, random_conditioning())
            except memory.InterruptProcessingException:
                pass
            else:
                raise AssertionError("Cancel was ignored")
            assert snapshot(model) == before
            assert torch.equal(sample(model, random_conditioning()), images)
            memory.unload_all_models()
            assert torch.equal(sample(applied, random_conditioning()), first)
            assert torch.equal(sample(model, random_conditioning()), images)
            (loras,) = applied.get_all_wrappers("apply_model")
            assert not loras._on_device  # device memory is free again


def test_training_on_top_has_the_right_gradients_in_and_out_of_the_range(lab):
    """Both steps are in one graph: blocks are recomputed when the present call is long over."""
    with torch.inference_mode():
        model = double(random_model(lab))
        first = apply_lora(lab, model, random_lora(lab, 5), end_percent=0.5)
        policy = make_policy(lab, first)
    (lora,) = first.get_all_wrappers("apply_model")
    lora._layers = {name: (a.double(), b.double()) for name, (a, b) in lora._layers.items()}
    generator = torch.Generator().manual_seed(3)
    for parameter in policy.adapter.parameters():
        values = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = values

    def loss(velocity):
        x_t = noise(2, 7, torch.float64)
        return (velocity(x_t, 0.95, "p0") ** 2).mean() + (velocity(x_t, 0.3, "p0") ** 2).mean()

    def work(velocity):
        loss(velocity).backward()
        parameters = policy.adapter.parameters()
        with torch.no_grad():
            size = torch.stack([p.grad.norm() for p in parameters]).norm()
            values = {}
            for k in (1, -1, 2, -2):
                for p in parameters:
                    p.add_(p.grad / size, alpha=k * 1e-2)
                values[k] = float(loss(velocity))
                for p in parameters:
                    p.sub_(p.grad / size, alpha=k * 1e-2)
        return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / 0.12, float(size)

    numeric, exact = policy.run(work)
    print("gradient", exact, "finite difference", numeric)
    assert abs(numeric - exact) <= 1e-3 * exact
    assert not any(len(module._forward_hooks) for module in model.model.modules())


def test_training_on_top_is_training_on_the_merged_model(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), random_lora(lab)
        applied, merged = apply_lora(lab, model, lora), merge_lora(model, lora)
        losses = [train(make_policy(lab, user), 3) for user in (applied, merged)]
        torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-3, atol=0)
        images = sample(applied, random_conditioning())
        assert distance(images, sample(merged, random_conditioning())) <= 1e-4


def test_what_cannot_be_applied_is_refused(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), random_lora(lab)
        layer = "diffusion_model.double_blocks.0.img_attn.proj"
        some = {key: value for key, value in lora.items() if key.startswith(layer)}
        assert len(some) == 3
        _refused(
            lambda: apply_lora(lab, model, {"unet.down.lora_A.weight": torch.ones(1)}), "unet.down"
        )
        _refused(lambda: apply_lora(lab, model, some | {f"{layer}.diff_b": torch.ones(96)}), "diff")
        dora = some | {f"{layer}.dora_scale": torch.ones(96, 1)}
        _refused(lambda: apply_lora(lab, model, dora), "DoRA", layer)
        narrow = some | {f"{layer}.lora_A.weight": torch.ones(LORA_RANK, 5)}
        _refused(lambda: apply_lora(lab, model, narrow), "img_attn.proj maps 5 to", "another one")
        for start, end in ((0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)):
            _refused(
                lambda start=start, end=end: apply_lora(lab, model, lora, 1.0, start, end),
                f"start_percent is {start}",
            )


def test_the_nodes_take_one_lora_and_not_two(lab):
    apply = lab.module("nodes.apply").ApplyLoRA.execute
    _refused(lambda: apply(None, "a.safetensors", 1.0, 0.0, 1.0, {}), "lora is connected", "both")
    _refused(lambda: apply(None, "none", 1.0, 0.0, 1.0, None), "lora is not connected", "'none'")
    evaluate = lab.module("nodes.evaluation").EvaluateLoRA.execute
    rest = (None, None, None, None, torch.zeros(1), {}, 2, 0, 0, False)
    for lora, model in (({}, object()), (None, None)):
        words = ("either lora or second_model",)
        _refused(lambda lora=lora, model=model: evaluate(*rest, lora, model), *words)


def test_a_compiled_model_is_refused_instead_of_sampled_without_the_lora(lab):
    from comfy.patcher_extension import WrappersMP

    with torch.inference_mode():
        model = random_model(lab)
        applied = apply_lora(lab, model, random_lora(lab))
        applied.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *a, **k: executor(*a, **k)
        )
        _refused(lambda: sample(applied, random_conditioning()), "torch.compile")
        other = apply_lora(lab, model, random_lora(lab))
        block = model.model.diffusion_model.double_blocks[0]

        class Compiled(torch.nn.Module):  # what torch.compile puts around a module
            def __init__(self):
                super().__init__()
                self._orig_mod = block

            def forward(self, *args, **kwargs):
                return self._orig_mod(*args, **kwargs)

            def __getattr__(self, name):
                return super().__getattr__(name) if name == "_orig_mod" else getattr(block, name)

        other.add_object_patch("diffusion_model.double_blocks.0", Compiled())
        _refused(lambda: sample(other, random_conditioning()), "torch.compile")
        sample(model, random_conditioning())
