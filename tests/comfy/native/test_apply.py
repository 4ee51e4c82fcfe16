"""Apply LoRA is the side branch of training, in ordinary sampling, on some of the steps."""

from __future__ import annotations

import torch

from .models import (
    LATENT,
    LORA_SCALE,
    apply_lora,
    distance,
    every_kind_of_weights,
    make_policy,
    merge_lora,
    noise,
    quantised_model,
    random_conditioning,
    random_lora,
    random_model,
    sample,
    train,
    velocity_at,
)


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


def test_the_full_range_is_the_function_that_was_trained(lab):
    with torch.inference_mode():
        for model in every_kind_of_weights(lab):
            policy = make_policy(lab, model)
            train(policy, 4)
            trained, lora = policy.run(velocity_at()), policy.lora_model()
            base = make_policy(lab, model).run(velocity_at())  # a fresh adapter is the identity
            applied = make_policy(lab, apply_lora(lab, model, lora)).run(velocity_at())
            assert distance(applied, trained) <= 1e-6
            assert distance(base, trained) > 1e-2


def test_sampling_equals_hooks_that_somebody_else_wrote(lab):
    with torch.inference_mode():
        for model in (random_model(lab), quantised_model(lab)):
            lora = random_lora(lab)
            found = sample(apply_lora(lab, model, lora, strength=0.7), random_conditioning())
            layers = dict(model.model.named_modules())
            handles = []
            for key in [key for key in lora if key.endswith(".alpha")]:
                name = key.removesuffix(".alpha")
                delta = (
                    0.7 * LORA_SCALE * lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
                )
                handles.append(
                    layers[name].register_forward_hook(
                        lambda layer, inputs, output, delta=delta: output + inputs[0] @ delta.T
                    )
                )
            expected = sample(model, random_conditioning())
            for handle in handles:
                handle.remove()
            base = sample(model, random_conditioning())
            assert distance(found, expected) <= 1e-4 * distance(base, expected)
            assert distance(base, expected) > 0.1


def test_float32_weights_give_what_the_merging_loader_gives(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), random_lora(lab)
        for strength in (1.0, -0.5):
            found = sample(apply_lora(lab, model, lora, strength), random_conditioning())
            merged = sample(merge_lora(model, lora, strength), random_conditioning())
            assert distance(found, merged) <= 1e-4
        assert distance(found, sample(model, random_conditioning())) > 0.1


def test_fp8_weights_lose_nothing(lab):
    with torch.inference_mode():
        stored = random_model(lab, torch.float8_e4m3fn, torch.float32)
        truth = random_model(lab)  # the same fp8 numbers, held in float32
        state = stored.model.diffusion_model.state_dict()
        truth.model.diffusion_model.load_state_dict({k: v.float() for k, v in state.items()})
        lora = random_lora(lab, std=0.02)
        want = sample(merge_lora(truth, lora), random_conditioning())
        effect = distance(want, sample(truth, random_conditioning()))
        exact = (
            distance(sample(apply_lora(lab, stored, lora), random_conditioning()), want) / effect
        )
        merged = distance(sample(merge_lora(stored, lora), random_conditioning()), want) / effect
        print("error / effect: applied", exact, "merged", merged)
        assert exact <= 1e-3 < 0.1 < merged


def test_strength_0_and_an_empty_range_are_the_base_bit_for_bit(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), random_lora(lab)
        sigmas = _sigmas(model)
        base, _ = _euler(model, sigmas)
        for options in ({"strength": 0.0}, {"start_percent": 0.4, "end_percent": 0.4}):
            assert torch.equal(_euler(apply_lora(lab, model, lora, **options), sigmas)[0], base)


def test_a_part_of_the_range_is_two_samplings_one_after_the_other(lab):
    """The LoRA on the first 3 of 5 steps, and none of them by rounding."""
    with torch.inference_mode():
        model, lora = random_model(lab), random_lora(lab)
        sigmas = _sigmas(model)
        full = apply_lora(lab, model, lora)
        first = apply_lora(lab, model, lora, end_percent=0.6)
        x_0, predicted = _euler(first, sigmas)
        # Up to the switch it is the full LoRA bit for bit; SplitSigmas then hands x on.
        _, with_lora = _euler(full, sigmas)
        middle, _ = _euler(full, sigmas[:4])
        end, without = _euler(model, sigmas[3:], middle, torch.zeros_like(middle))
        for step in range(3):
            assert torch.equal(predicted[step], with_lora[step])
        for step in (3, 4):
            assert distance(predicted[step], without[step - 3]) <= 1e-5
            assert distance(predicted[step], with_lora[step]) > 1e-2
        assert distance(x_0, end) <= 1e-5


def test_steps_after_the_switch_are_the_bases_bit_for_bit(lab):
    """One sampler run, so that nothing is handed on: the LoRA on the last 2 of 5 steps."""
    with torch.inference_mode():
        model, lora = random_model(lab), random_lora(lab)
        sigmas = _sigmas(model)
        late = apply_lora(lab, model, lora, start_percent=0.6)
        _, predicted = _euler(late, sigmas)
        _, base = _euler(model, sigmas)
        _, full = _euler(apply_lora(lab, model, lora), sigmas)
        assert all(torch.equal(predicted[step], base[step]) for step in range(3))
        assert not torch.equal(predicted[3], base[3]) and not torch.equal(predicted[3], full[3])


def test_ranges_that_touch_share_no_step_and_leave_none_out(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), random_lora(lab)
        whole, _ = _euler(apply_lora(lab, model, lora), _sigmas(model, 10))
        for switch in (0.1, 0.3, 0.55, 0.7, 0.9):
            early = apply_lora(lab, model, lora, end_percent=switch)
            both = apply_lora(lab, early, lora, start_percent=switch)
            assert torch.equal(_euler(both, _sigmas(model, 10))[0], whole), switch


def test_the_range_follows_a_shift_that_is_set_later(lab):
    import comfy.model_sampling

    class Shifted(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        pass

    with torch.inference_mode():
        model, lora = random_model(lab), random_lora(lab)
        shifted = Shifted(model.model.model_config)
        shifted.set_parameters(shift=3.0)
        user = apply_lora(lab, model, lora, end_percent=0.4)
        user.add_object_patch("model_sampling", shifted)
        full = apply_lora(lab, model, lora)
        full.add_object_patch("model_sampling", shifted)
        sigmas = _sigmas(user)
        assert float(sigmas[2]) > float(_sigmas(model)[2]) + 0.05
        predicted, with_lora = _euler(user, sigmas)[1], _euler(full, sigmas)[1]
        same = [torch.equal(a, b) for a, b in zip(predicted, with_lora, strict=True)]
        assert same == [True, True, False, False, False]


def test_both_halves_of_guidance_have_the_lora(lab):
    with torch.inference_mode():
        model, lora = random_model(lab), random_lora(lab)
        sigmas = _sigmas(model)
        found, _ = _euler(apply_lora(lab, model, lora), sigmas, cfg=3.0)
        merged, _ = _euler(merge_lora(model, lora), sigmas, cfg=3.0)
        assert distance(found, merged) <= 1e-3
        assert distance(found, _euler(model, sigmas, cfg=3.0)[0]) > 0.1


def test_loras_stack_with_each_other_and_with_the_loader_in_any_order(lab):
    with torch.inference_mode():
        model, one, two = random_model(lab), random_lora(lab, 1), random_lora(lab, 2)
        want = sample(merge_lora(merge_lora(model, one), two, 0.5), random_conditioning())
        for stacked in (
            apply_lora(lab, apply_lora(lab, model, one), two, 0.5),
            apply_lora(lab, merge_lora(model, one), two, 0.5),
            merge_lora(apply_lora(lab, model, one), two, 0.5),
        ):
            assert distance(sample(stacked, random_conditioning()), want) <= 1e-4
        assert distance(sample(merge_lora(model, one), random_conditioning()), want) > 0.1


def test_files_that_split_fused_layers_give_the_same_function(lab):
    export = lab.module("chunk_grpo_core.lora.files")
    with torch.inference_mode():
        model, lora = random_model(lab), random_lora(lab)
        split = export.convert_lora(lora, "diffusers")
        assert not split.keys() & lora.keys()
        names = [
            sample(apply_lora(lab, model, file), random_conditioning()) for file in (lora, split)
        ]
        assert distance(*names) <= 1e-5
