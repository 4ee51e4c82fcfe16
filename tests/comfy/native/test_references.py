"""Models that look at a picture: reference latents reach the MODEL as in ordinary sampling."""

from __future__ import annotations

import pytest
import torch

from .gradients import float64_policy, gradient_errors
from .models import (
    architecture_policy,
    assert_euler_equals_comfyui,
    models,
    noise,
    train,
    unchanged,
    velocity_at,
)

EDITING = ("flux", "flux2", "flux2_klein", "qwen_image", "omnigen2")


def of_picture(name: str, seed: int = 1, size: float = 2.0):
    """Conditioning with a reference latent, as ComfyUI's Reference Latent makes it."""
    from comfy_extras.nodes_edit_model import ReferenceLatent

    picture = size * noise(1, 40 + seed, latent=models.ALL[name].latent)
    given = models.conditioning(name, seed)
    return ReferenceLatent.execute(given, {"samples": picture}).result[0]


@pytest.mark.parametrize("name", EDITING)
def test_velocity_is_that_of_ordinary_sampling_and_depends_on_the_picture(lab, name):
    with torch.inference_mode():
        model, prompt = models.build(name), of_picture(name)
        policy = architecture_policy(lab, name, model, prompt=prompt)
        assert_euler_equals_comfyui(policy, model, prompt)
        negative = of_picture(name, 2)
        guided = architecture_policy(lab, name, model, prompt=prompt, negative=negative, cfg=3.0)
        assert_euler_equals_comfyui(guided, model, prompt, cfg=3.0, negative=negative)
        velocities = [
            architecture_policy(lab, name, model, prompt=given).run(
                velocity_at(latent=policy.latent_shape)
            )
            for given in (models.conditioning(name, 1), prompt, of_picture(name, 1, -2.0))
        ]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            change = (velocities[a] - velocities[b]).norm() / velocities[b].norm()
            assert float(change) > 1e-3, (name, a, b)


@pytest.mark.parametrize("name", EDITING)
def test_gradients_equal_finite_differences(lab, name):
    errors = gradient_errors(float64_policy(lab, name, prompt=of_picture(name, 1, 0.5)))
    worst = max(errors, key=errors.get)
    assert errors[worst] <= 1e-3, (worst, errors[worst])


@pytest.mark.parametrize("name", EDITING)
def test_the_ratio_begins_at_one_and_the_model_stays_as_it_was(lab, name):
    latent = models.ALL[name].latent
    with torch.inference_mode():
        model, prompt = models.build(name), of_picture(name)
        with unchanged(model, prompt, latent):
            policy = architecture_policy(lab, name, model, prompt=prompt)
            losses = train(policy, 4)
            assert losses[-1] < losses[0]

        def work(velocity):
            rolled_out = velocity_at(latent=latent)(velocity)
            trained = velocity(noise(2, latent=latent), 0.6, "p0")
            return trained.requires_grad and torch.equal(trained, rolled_out)

        assert policy.run(work)


def refused(lab, name, *words, model=None, **options):
    with torch.inference_mode():
        with pytest.raises(ValueError) as caught:
            policy = architecture_policy(lab, name, model, **options)
            policy.run(velocity_at(latent=policy.latent_shape))
        assert all(word in str(caught.value) for word in words), caught.value


def test_a_model_that_would_take_no_notice_is_refused(lab):
    for name in ("sd3", "chroma"):  # Chroma's class accepts them; newer Z-Image looks at them
        refused(lab, name, "takes no notice", "Kontext", prompt=of_picture(name))


def test_pictures_in_the_wrong_place_or_of_another_vae_are_refused(lab):
    plain = models.conditioning("flux", 1)
    refused(
        lab, "flux", "negative has reference", "Prompt Set",
        prompt=plain, negative=of_picture("flux"), cfg=2.0,
    )  # fmt: skip
    words, extras = plain[0]
    other = [[words, {**extras, "reference_latents": [torch.zeros(1, 128, 4, 4)]}]]
    refused(lab, "flux", "reference has 128 channels", "needs 16", prompt=other)
    for key in ("concat_latent_image", "clip_vision_output"):
        given = [[words, {**extras, key: torch.zeros(1, 16, 8, 8)}]]
        refused(lab, "flux", key, "training takes text", prompt=given)


@pytest.mark.parametrize("name", ["flux", "flux2", "qwen_image", "omnigen2"])
def test_a_reference_of_other_axes_frames_or_numbers_is_refused(lab, name):
    """A latent of FLUX has as many channels as one of Qwen-Image; newer Qwen-Image takes it."""
    words, extras = models.conditioning(name, 1)[0]
    right = of_picture(name)[0][1]["reference_latents"][0]
    has_frames = right.ndim == 5
    other = right[:, :, 0] if has_frames else right[:, :, None]
    wrong = {
        "belongs to the MODEL": other,
        "NaN or infinity": right * torch.nan,
        **({"2 frames": right.repeat(1, 1, 2, 1, 1)} if has_frames else {}),
    }
    for said, latent in wrong.items():
        prompt = [[words, {**extras, "reference_latents": [latent]}]]
        refused(lab, name, "reference ", said, prompt=prompt)


def test_a_model_that_takes_a_picture_beside_the_noise_is_refused(lab):
    """FLUX.1 Fill, Canny and Depth; ComfyUI gives them an empty picture, and says nothing."""
    entry = models.ALL["flux"]
    fill = models.Architecture(
        kind=entry.kind, unet_config={**entry.unet_config, "in_channels": 32}, extras=entry.extras
    )
    refused(lab, "flux", "beside the noise", "Fill", model=models.build(fill))


def test_prompt_set_gives_the_picture_to_every_prompt_and_takes_one_alone(lab):
    node = lab.module("nodes.prompts").PromptSetNode
    _, clip, _ = lab.module("nodes.bridge.tiny").load_tiny()
    text = "a small red circle on a blue background\na large green square on a red background"
    options = {
        "clip": clip, "text": text, "held_out_text": "", "held_out": 1, "split_seed": 0,
        "guidance": 3.5, "cache_gib": 0.0,
    }  # fmt: skip
    picture = noise(1)
    with torch.inference_mode():
        prompts = node.execute(**options, reference={"samples": picture}).args[0]
        assert len(prompts.conditioning) == 3  # the empty prompt is one of them
        for entries in prompts.conditioning.values():
            (latent,) = entries[0][1]["reference_latents"]
            assert torch.equal(latent, picture)
        without = node.execute(**options).args[0]
        assert "reference_latents" not in next(iter(without.conditioning.values()))[0][1]
        with pytest.raises(ValueError, match="reference holds 2 latents; it must be the LATENT of"):
            node.execute(**options, reference={"samples": noise(2)})


@pytest.mark.parametrize("given", ["a text", 3, {"no": "samples"}])
def test_what_is_no_latent_is_refused_by_the_name_of_its_input(lab, given):
    node = lab.module("nodes.prompts").PromptSetNode
    with pytest.raises(ValueError, match="reference is .* which is no LATENT; link a node"):
        node.check_lazy_status(clip=object(), reference=given)
    shape_of, (model, _, _) = (
        lab.module("nodes.bridge.latents").latent_shape_of,
        lab.module("nodes.bridge.tiny").load_tiny(),
    )
    with pytest.raises(ValueError, match="latent is .* which is no LATENT; link a node"):
        shape_of(model, given)
