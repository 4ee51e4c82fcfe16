"""Apply LoRA is the side branch of training, in ordinary sampling, on some of the steps."""

from __future__ import annotations

import torch

from .inprocess import subprocess_tests
from .native_models import (
    LATENT,
    double,
    every_kind_of_weights,
    make_policy,
    noise,
    quantised_model,
    random_conditioning,
    random_model,
    sample,
    snapshot,
    train,
    velocity_at,
)

test_native = subprocess_tests(__file__)

RANK, SCALE = 4, 2.0


def _apply(lab, *arguments, **options):
    return lab.module("nodes.bridge.applied").apply_lora(*arguments, **options)


def _random_lora(lab, seed=0, std=0.05):
    """A LORA_MODEL on every linear layer of the blocks, far from the identity."""
    linears = lab.module("nodes.bridge.adapter")._linears(random_model(lab).model.diffusion_model)
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for name, layer in linears.items():
        a, b = (RANK, layer.in_features), (layer.out_features, RANK)
        adapter[f"{name}.lora_A.weight"] = std * torch.randn(a, generator=generator)
        adapter[f"{name}.lora_B.weight"] = std * torch.randn(b, generator=generator)
    return lab.module("chunk_grpo_core.export").native_lora(adapter, SCALE * RANK)


def _merged(model, lora, strength=1.0):
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0.0)[0]


def _distance(a, b):
    return float((a.double() - b.double()).abs().max())


def _sigmas(model, steps=5):
    """A schedule whose step k starts at k / steps of the sampling, as the MODEL counts it."""
    sampling = model.get_model_object("model_sampling")
    return torch.tensor([float(sampling.percent_to_sigma(k / steps)) for k in range(steps + 1)])


def _euler(model, sigmas, latent=None, x_1=None, cfg=1.0):
    """Sample; returns the latents and what the network predicted at each step."""
    import comfy.sample
    import comfy.samplers

    latent = torch.zeros(2, *LATENT) if latent is None else latent
    x_1 = noise(2) if x_1 is None else x_1
    predicted = []
    out = comfy.sample.sample_custom(
        model, x_1, cfg, comfy.samplers.sampler_object("euler"), sigmas, random_conditioning(),
        random_conditioning(3, 7), latent, disable_pbar=True, seed=0,
        callback=lambda step, denoised, x, total: predicted.append(denoised.clone()),
    )  # fmt: skip
    return out, predicted


def _refused(build, *words):
    try:
        build()
    except ValueError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"accepted: {words}")


def check_the_full_range_is_the_function_that_was_trained(lab):
    with torch.inference_mode():
        for model in every_kind_of_weights(lab):
            policy = make_policy(lab, model)
            train(policy, 4)
            trained, lora = policy.run(velocity_at()), policy.lora_model()
            base = make_policy(lab, model).run(velocity_at())  # a fresh adapter is the identity
            applied = make_policy(lab, _apply(lab, model, lora)).run(velocity_at())
            assert _distance(applied, trained) <= 1e-6
            assert _distance(base, trained) > 1e-2


def check_sampling_equals_hooks_that_somebody_else_wrote(lab):
    with torch.inference_mode():
        for model in (random_model(lab), quantised_model(lab)):
            lora = _random_lora(lab)
            found = sample(_apply(lab, model, lora, strength=0.7), random_conditioning())
            layers = dict(model.model.named_modules())
            handles = []
            for key in [key for key in lora if key.endswith(".alpha")]:
                name = key.removesuffix(".alpha")
                delta = 0.7 * SCALE * lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
                handles.append(
                    layers[name].register_forward_hook(
                        lambda layer, inputs, output, delta=delta: output + inputs[0] @ delta.T
                    )
                )
            expected = sample(model, random_conditioning())
            for handle in handles:
                handle.remove()
            base = sample(model, random_conditioning())
            assert _distance(found, expected) <= 1e-4 * _distance(base, expected)
            assert _distance(base, expected) > 0.1


def check_float32_weights_give_what_the_merging_loader_gives(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), _random_lora(lab)
        for strength in (1.0, -0.5):
            found = sample(_apply(lab, model, lora, strength), random_conditioning())
            merged = sample(_merged(model, lora, strength), random_conditioning())
            assert _distance(found, merged) <= 1e-4
        assert _distance(found, sample(model, random_conditioning())) > 0.1


def check_fp8_weights_lose_nothing(lab):
    with torch.inference_mode():
        stored = random_model(lab, torch.float8_e4m3fn, torch.float32)
        truth = random_model(lab)  # the same fp8 numbers, held in float32
        state = stored.model.diffusion_model.state_dict()
        truth.model.diffusion_model.load_state_dict({k: v.float() for k, v in state.items()})
        lora = _random_lora(lab, std=0.02)
        want = sample(_merged(truth, lora), random_conditioning())
        effect = _distance(want, sample(truth, random_conditioning()))
        exact = _distance(sample(_apply(lab, stored, lora), random_conditioning()), want) / effect
        merged = _distance(sample(_merged(stored, lora), random_conditioning()), want) / effect
        print("error / effect: applied", exact, "merged", merged)
        assert exact <= 1e-3 < 0.1 < merged


def check_strength_0_and_an_empty_range_are_the_base_bit_for_bit(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), _random_lora(lab)
        sigmas = _sigmas(model)
        base, _ = _euler(model, sigmas)
        for options in ({"strength": 0.0}, {"start_percent": 0.4, "end_percent": 0.4}):
            assert torch.equal(_euler(_apply(lab, model, lora, **options), sigmas)[0], base)


def check_a_part_of_the_range_is_two_samplings_one_after_the_other(lab):
    """The LoRA on the first 3 of 5 steps, and none of them by rounding."""
    with torch.inference_mode():
        model, lora = random_model(lab), _random_lora(lab)
        sigmas = _sigmas(model)
        full = _apply(lab, model, lora)
        first = _apply(lab, model, lora, end_percent=0.6)
        x_0, predicted = _euler(first, sigmas)
        # Up to the switch it is the full LoRA bit for bit; SplitSigmas then hands x on.
        _, with_lora = _euler(full, sigmas)
        middle, _ = _euler(full, sigmas[:4])
        end, without = _euler(model, sigmas[3:], middle, torch.zeros_like(middle))
        for step in range(3):
            assert torch.equal(predicted[step], with_lora[step])
        for step in (3, 4):
            assert _distance(predicted[step], without[step - 3]) <= 1e-5
            assert _distance(predicted[step], with_lora[step]) > 1e-2
        assert _distance(x_0, end) <= 1e-5


def check_steps_after_the_switch_are_the_bases_bit_for_bit(lab):
    """One sampler run, so that nothing is handed on: the LoRA on the last 2 of 5 steps."""
    with torch.inference_mode():
        model, lora = random_model(lab), _random_lora(lab)
        sigmas = _sigmas(model)
        late = _apply(lab, model, lora, start_percent=0.6)
        _, predicted = _euler(late, sigmas)
        _, base = _euler(model, sigmas)
        _, full = _euler(_apply(lab, model, lora), sigmas)
        assert all(torch.equal(predicted[step], base[step]) for step in range(3))
        assert not torch.equal(predicted[3], base[3]) and not torch.equal(predicted[3], full[3])


def check_ranges_that_touch_share_no_step_and_leave_none_out(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), _random_lora(lab)
        whole, _ = _euler(_apply(lab, model, lora), _sigmas(model, 10))
        for switch in (0.1, 0.3, 0.55, 0.7, 0.9):
            early = _apply(lab, model, lora, end_percent=switch)
            both = _apply(lab, early, lora, start_percent=switch)
            assert torch.equal(_euler(both, _sigmas(model, 10))[0], whole), switch


def check_the_range_follows_a_shift_that_is_set_later(lab):
    import comfy.model_sampling

    class Shifted(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        pass

    with torch.inference_mode():
        model, lora = random_model(lab), _random_lora(lab)
        shifted = Shifted(model.model.model_config)
        shifted.set_parameters(shift=3.0)
        user = _apply(lab, model, lora, end_percent=0.4)
        user.add_object_patch("model_sampling", shifted)
        full = _apply(lab, model, lora)
        full.add_object_patch("model_sampling", shifted)
        sigmas = _sigmas(user)
        assert float(sigmas[2]) > float(_sigmas(model)[2]) + 0.05
        predicted, with_lora = _euler(user, sigmas)[1], _euler(full, sigmas)[1]
        same = [torch.equal(a, b) for a, b in zip(predicted, with_lora, strict=True)]
        assert same == [True, True, False, False, False]


def check_both_halves_of_guidance_have_the_lora(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), _random_lora(lab)
        sigmas = _sigmas(model)
        found, _ = _euler(_apply(lab, model, lora), sigmas, cfg=3.0)
        merged, _ = _euler(_merged(model, lora), sigmas, cfg=3.0)
        assert _distance(found, merged) <= 1e-3
        assert _distance(found, _euler(model, sigmas, cfg=3.0)[0]) > 0.1


def check_loras_stack_with_each_other_and_with_the_loader_in_any_order(lab):
    with torch.inference_mode():
        model, one, two = random_model(lab), _random_lora(lab, 1), _random_lora(lab, 2)
        want = sample(_merged(_merged(model, one), two, 0.5), random_conditioning())
        for stacked in (
            _apply(lab, _apply(lab, model, one), two, 0.5),
            _apply(lab, _merged(model, one), two, 0.5),
            _merged(_apply(lab, model, one), two, 0.5),
        ):
            assert _distance(sample(stacked, random_conditioning()), want) <= 1e-4
        assert _distance(sample(_merged(model, one), random_conditioning()), want) > 0.1


def check_the_input_model_is_as_it_was(lab):
    """Also after an error inside the network, and with other MODELs sampled in between."""
    import comfy.model_management as memory

    with torch.inference_mode():
        for model in every_kind_of_weights(lab):
            lora = _random_lora(lab)
            images = sample(model, random_conditioning())
            before = snapshot(model)  # of a loaded model: loading leaves marks of its own
            applied = _apply(lab, model, lora)
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


def check_training_on_top_has_the_right_gradients_in_and_out_of_the_range(lab):
    """Both steps are in one graph: blocks are recomputed when the present call is long over."""
    with torch.inference_mode():
        model = double(random_model(lab))
        first = _apply(lab, model, _random_lora(lab, 5), end_percent=0.5)
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


def check_training_on_top_is_training_on_the_merged_model(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), _random_lora(lab)
        applied, merged = _apply(lab, model, lora), _merged(model, lora)
        losses = [train(make_policy(lab, user), 3) for user in (applied, merged)]
        torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-3, atol=0)
        images = sample(applied, random_conditioning())
        assert _distance(images, sample(merged, random_conditioning())) <= 1e-4


def check_files_that_split_fused_layers_give_the_same_function(lab):
    export = lab.module("chunk_grpo_core.export")
    with torch.inference_mode():
        model, lora = random_model(lab), _random_lora(lab)
        split = export.convert_lora(lora, "diffusers")
        assert not split.keys() & lora.keys()
        names = [sample(_apply(lab, model, file), random_conditioning()) for file in (lora, split)]
        assert _distance(*names) <= 1e-5


def check_what_cannot_be_applied_is_refused(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), _random_lora(lab)
        layer = "diffusion_model.double_blocks.0.img_attn.proj"
        some = {key: value for key, value in lora.items() if key.startswith(layer)}
        assert len(some) == 3
        _refused(lambda: _apply(lab, model, {"unet.down.lora_A.weight": torch.ones(1)}), "unet.d")
        _refused(lambda: _apply(lab, model, some | {f"{layer}.diff_b": torch.ones(96)}), "diff")
        dora = some | {f"{layer}.dora_scale": torch.ones(96, 1)}
        _refused(lambda: _apply(lab, model, dora), "DoRA", layer)
        narrow = some | {f"{layer}.lora_A.weight": torch.ones(RANK, 5)}
        _refused(lambda: _apply(lab, model, narrow), "(4, 5)", layer, "another model")
        for start, end in ((0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)):
            _refused(
                lambda start=start, end=end: _apply(lab, model, lora, 1.0, start, end),
                f"start_percent is {start}",
            )


def check_the_nodes_take_one_lora_and_not_two(lab):
    apply = lab.module("nodes.apply").ApplyLoRA.execute
    _refused(lambda: apply(None, "a.safetensors", 1.0, 0.0, 1.0, {}), "lora is connected", "both")
    _refused(lambda: apply(None, "none", 1.0, 0.0, 1.0, None), "lora is not connected", "'none'")
    evaluate = lab.module("nodes.evaluation").EvaluateLoRA.execute
    rest = (None, None, None, None, torch.zeros(1), {}, 2, 0, 0, False)
    for lora, model in (({}, object()), (None, None)):
        words = ("either lora or second_model",)
        _refused(lambda lora=lora, model=model: evaluate(*rest, lora, model), *words)


def check_a_compiled_model_is_refused_instead_of_sampled_without_the_lora(lab):
    from comfy.patcher_extension import WrappersMP

    with torch.inference_mode():
        model = random_model(lab)
        applied = _apply(lab, model, _random_lora(lab))
        applied.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *a, **k: executor(*a, **k)
        )
        _refused(lambda: sample(applied, random_conditioning()), "torch.compile")
        other = _apply(lab, model, _random_lora(lab))
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
