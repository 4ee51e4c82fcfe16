"""What a MODEL, a CONDITIONING and a LATENT ask for is what training does."""

from __future__ import annotations

import torch

from ..tiny_architectures.models import ARCHITECTURES
from .models import (
    architecture_policy,
    assert_euler_equals_comfyui,
    models,
    noise,
    random_model,
    velocity_at,
)


def _refused(build, *words):
    try:
        build()
    except ValueError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"accepted: {words}")


def _velocity(lab, name, model=None, **options):
    policy = architecture_policy(lab, name, model, **options)
    return policy.run(velocity_at(latent=ARCHITECTURES[name].latent))


def test_an_euler_rollout_is_comfyuis_own_sampling(lab):
    with torch.inference_mode():
        for name in ARCHITECTURES:
            model, negative = models.build(name), models.conditioning(name, 2, tokens=4)
            for cfg in (1.0, 3.0):
                policy = architecture_policy(lab, name, model, negative=negative, cfg=cfg)
                assert_euler_equals_comfyui(
                    policy, model, models.conditioning(name, 1), cfg=cfg, negative=negative
                )


def test_sampling_patches_are_honoured(lab):
    """A shift only moves sigmas, which are given; another scale of time changes the velocity."""
    from comfy_extras.nodes_model_advanced import (
        ModelSamplingAuraFlow,
        ModelSamplingFlux,
        ModelSamplingSD3,
    )

    with torch.inference_mode():
        for name, shifted in {
            "sd3": lambda m: ModelSamplingSD3().patch(m, 7.0)[0],
            "flux": lambda m: ModelSamplingFlux().patch(m, 2.0, 0.5, 512, 512)[0],
            "qwen_image": lambda m: ModelSamplingFlux().patch(m, 2.0, 0.5, 512, 512)[0],
            "z_image": lambda m: ModelSamplingAuraFlow().patch_aura(m, 6.0)[0],
        }.items():
            model = models.build(name)
            assert torch.equal(_velocity(lab, name, shifted(model)), _velocity(lab, name, model))
        model = models.build("sd3")
        rescaled = ModelSamplingAuraFlow().patch_aura(model, 3.0)[0]  # time in 0..1 instead of 1000
        assert not torch.allclose(_velocity(lab, "sd3", rescaled), _velocity(lab, "sd3", model))
        policy = architecture_policy(lab, "sd3", rescaled)
        assert_euler_equals_comfyui(policy, rescaled, models.conditioning("sd3", 1))


def test_guidance_in_the_conditioning_is_honoured(lab):
    with torch.inference_mode():
        model = models.build("flux")
        plain = models.conditioning("flux", 1)
        lora = lab.module("chunk_grpo_core.lora.adapter").LoraConfig(rank=2, targets="all-linear")
        policy = lab.module("nodes.bridge.policy").NativePolicy
        velocities = []
        for guidance in (1.0, 3.5, None):
            extras = {**plain[0][1], "guidance": guidance}
            if guidance is None:
                del extras["guidance"]  # ComfyUI's default is 3.5
            conditioning = [[plain[0][0], extras]]
            trainee = policy(model, None, {"p0": conditioning}, (16, 8, 8), lora, 0)
            velocities.append(trainee.run(velocity_at()))
            assert_euler_equals_comfyui(trainee, model, conditioning)
        low, default, absent = velocities
        assert torch.equal(default, absent)
        assert float((low - default).abs().max()) > 1e-2


def test_a_prompt_is_processed_once_in_a_phase(lab):
    """And with its own area of the picture only."""
    policy = architecture_policy(lab, "sd3")
    calls = []
    original = policy._model.model.extra_conds

    def counted(**options):
        calls.append(options["prompt_type"])
        return original(**options)

    policy._model.model.extra_conds = counted

    def work(velocity):
        calls.clear()
        for t in (0.9, 0.5, 0.1):
            velocity(noise(2), t, "p0")

    policy.run(work)
    assert calls == ["positive"], calls


def test_regional_prompts_do_not_reach_other_prompts(lab):
    """ComfyUI gives the negative prompt the areas of the positive one; of this one only."""
    with torch.inference_mode():
        model, negative = models.build("sd3"), models.conditioning("sd3", 2)
        whole, half = models.conditioning("sd3", 1), models.conditioning("sd3", 3)
        half[0][1]["area"] = (8, 4, 0, 0)
        lora = lab.module("chunk_grpo_core.lora.adapter").LoraConfig(rank=2, targets="all-linear")

        def velocity(conditioning):
            policy = lab.module("nodes.bridge.policy").NativePolicy(
                model, None, conditioning, (16, 8, 8), lora, 0, negative=negative, cfg=3.0
            )

            def work(v):
                with torch.no_grad():
                    return [v(noise(2), 0.6, prompt) for prompt in conditioning]

            return policy.run(work)

        alone, (_, beside) = velocity({"p0": whole}), velocity({"p1": half, "p0": whole})
        assert torch.equal(alone[0], beside)


def test_two_examples_with_one_text_share_its_conditioning(lab):
    example = lab.module("chunk_grpo_core.prompts.example").Example

    def work(velocity):
        prompts = ("p0", example("p0", {"target_text": "a"}), example("p0", {"target_text": "b"}))
        with torch.no_grad():
            return [velocity(noise(2), 0.6, prompt) for prompt in prompts]

    plain, first, second = architecture_policy(lab, "flux").run(work)
    assert torch.equal(plain, first) and torch.equal(plain, second)


def test_latents_of_every_shape(lab):
    shape_of = lab.module("nodes.bridge.latents").latent_shape_of
    for name, entry in ARCHITECTURES.items():
        model = models.build(name)
        assert shape_of(model, {"samples": torch.zeros(3, *entry.latent)}) == entry.latent
        wrong = {"samples": torch.ones(1, 4, *entry.latent[1:])}
        _refused(lambda m=model, w=wrong: shape_of(m, w), "4 channels", str(entry.latent[0]))
    qwen, flux = models.build("qwen_image"), models.build("flux")
    flat = {"samples": torch.zeros(1, 16, 8, 8)}  # EmptySD3LatentImage
    assert shape_of(qwen, flat) == (16, 1, 8, 8)
    assert shape_of(models.build("flux2"), flat)[0] == 128
    _refused(lambda: shape_of(flux, {"samples": torch.zeros(1, 16, 2, 8, 8)}), "5 axes", "4 axes")


def test_five_axes_are_decoded_to_one_picture_each(lab):
    class VideoVae:
        def decode(self, latents):
            assert latents.shape == (1, 16, 1, 8, 8)
            return torch.linspace(-1, 2, 4 * 4 * 4).view(1, 1, 4, 4, 4)  # B T H W RGBA

    policy = architecture_policy(lab, "qwen_image", vae=VideoVae())
    images = policy.decode(noise(2, latent=policy.latent_shape))
    assert images.shape == (2, 4, 4, 3) and 0 <= float(images.min()) < float(images.max()) <= 1
    many = lab.module("nodes.bridge.policy").NativePolicy
    lora = lab.module("chunk_grpo_core.lora.adapter").LoraConfig(targets="all-linear")
    conditioning = {"p0": models.conditioning("qwen_image", 1)}
    model = models.build("qwen_image")
    _refused(
        lambda: many(model, VideoVae(), conditioning, (16, 3, 8, 8), lora, 0), "3 frames", "length"
    )
    many(model, None, conditioning, (16, 3, 8, 8), lora, 0)  # rollouts need no pictures


def test_other_kinds_of_models_are_refused_by_name(lab):
    import comfy.model_sampling as sampling

    check = lab.module("nodes.bridge.session").check_flow_model
    kinds = {
        "EPS": (sampling.ModelSamplingDiscrete, sampling.EPS),
        "V_PREDICTION": (sampling.ModelSamplingDiscrete, sampling.V_PREDICTION),
        "EDM": (sampling.ModelSamplingContinuousEDM, sampling.EDM),
        "X0": (sampling.ModelSamplingDiscreteFlow, sampling.X0),
        "IMG_TO_IMG": (sampling.ModelSamplingDiscreteFlow, sampling.IMG_TO_IMG),
        "COSMOS_RFLOW": (sampling.ModelSamplingCosmosRFlow, sampling.COSMOS_RFLOW),
        "IMG_TO_IMG_FLOW": (
            sampling.ModelSamplingDiscreteFlow,
            getattr(sampling, "IMG_TO_IMG_FLOW", None),
        ),
    }
    model = random_model(lab)
    for name, bases in kinds.items():
        if None in bases:
            continue  # newer ComfyUI only
        other = model.clone()
        other.add_object_patch("model_sampling", type("ModelSampling", bases, {})())
        _refused(lambda m=other: check(m), name, "Flux", "FLUX.1", "SD3", "Qwen-Image", "Z-Image")
    noisy = model.clone()
    noisy.add_object_patch("model_sampling", sampling.ModelSamplingFlux())
    _refused(lambda: check(noisy), "ModelSamplingFlux")
