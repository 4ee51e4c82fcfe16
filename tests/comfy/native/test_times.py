"""Several times in one call: found out by trying, and equal to one call for each."""

from __future__ import annotations

import pytest
import torch

from .models import architecture_policy, models, noise

TIMES = (0.9, 0.55, 0.2)


def _tried(lab, name, model=None, **options):
    """What a policy found out, and how far a call with several times is from single ones."""
    with torch.inference_mode():
        policy = architecture_policy(lab, name, model, batch=4, **options)

    def work(velocity):
        x_t = noise(len(TIMES), 3, latent=policy.latent_shape)
        with torch.no_grad():
            mixed = velocity(x_t, torch.tensor(TIMES), "p0")
            single = torch.stack([velocity(x_t, t, "p0")[i] for i, t in enumerate(TIMES)])
        return float((mixed - single).norm() / single.norm())

    with torch.inference_mode():
        error = policy.run(work)
    return policy.mixes_times, error


def test_a_model_takes_several_times_exactly_if_it_is_said_to(lab):
    found = {name: _tried(lab, name) for name in models.ARCHITECTURES}
    print(found)
    for name, (mixes, error) in found.items():
        assert (error <= 1e-4) == mixes, (name, mixes, error)
    assert found["flux"][0] and found["sd3"][0] and found["qwen_image"][0]


def test_with_guidance_as_without(lab):
    for name in ("flux", "sd3"):
        negative = models.conditioning(name, 2, tokens=4)
        mixes, error = _tried(lab, name, negative=negative, cfg=3.0)
        assert mixes and error <= 1e-4, (name, error)


def test_a_model_that_reads_only_the_first_time_gets_one_time_a_call(lab):
    model = models.build("flux")
    network = model.model.diffusion_model
    forward = network.forward
    network.forward = lambda x, timestep, *args, **kwargs: forward(
        x, timestep[:1].expand(len(timestep)), *args, **kwargs
    )
    mixes, error = _tried(lab, "flux", model)
    assert not mixes and error > 1e-3


def test_patches_may_look_at_the_time_and_get_one_a_call(lab):
    patched = models.build("flux")
    patched.set_model_sampler_cfg_function(lambda args: args["cond"])
    replaced = models.build("flux")
    replaced.set_model_patch(lambda *_: None, "called_by_nobody")
    wrapped = models.build("flux")
    wrapped.add_wrapper_with_key(
        "diffusion_model", "cache", lambda executor, *args, **kwargs: executor(*args, **kwargs)
    )
    for model in (patched, replaced, wrapped):
        assert not _tried(lab, "flux", model)[0]


def test_conditioning_for_a_part_of_the_steps_gets_one_time_a_call(lab):
    module = lab.module("nodes.bridge.times")
    entries = {"positive": [{"timestep_start": 500.0, "timestep_end": None}]}
    assert module._looks_at_times(entries, {})
    assert not module._looks_at_times({"positive": [{"timestep_start": None}]}, {})


def test_a_model_that_looks_up_the_next_level_gets_one_time_a_call(lab):
    """HunyuanImage 2.1 distilled finds there where a step leads to, by the first sample's time."""
    name = "hunyuan_image_distilled"
    if not models.is_there(name):
        pytest.skip("this version of ComfyUI does not have it")
    with torch.inference_mode():
        policy = architecture_policy(lab, name, batch=4, sigmas=(1.0, *TIMES, 0.0))
        policy.run(lambda velocity: None)
    assert not policy.mixes_times
