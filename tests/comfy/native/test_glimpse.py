"""Rough pictures of what is being drawn, on the node while it trains."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from chunk_grpo_core.models.tiny.model import load_tiny_flux
from chunk_grpo_core.models.tiny.render import render
from chunk_grpo_core.models.tiny.world import HELD_OUT

from .models import make_policy, noise, random_model
from .test_any_sampler import any_sampler


def glimpse(lab, latent_format, **options):
    shown = []
    kind = lab.module("nodes.bridge.glimpse").Glimpse
    return kind(latent_format, lambda *picture: shown.append(picture), **options), shown


def test_latents_of_the_tiny_flux_look_like_their_pictures(lab):
    pictures = render(HELD_OUT[:20], seed=1)
    with torch.no_grad():
        latents = load_tiny_flux().codec.encode(pictures)
    see, shown = glimpse(lab, lab.module("nodes.bridge.tiny")._Latent())
    see(latents)
    ((seen, scale),) = shown
    assert seen.shape == (16, 8, 8, 3) and scale == 12
    small = torch.nn.functional.interpolate(pictures[:16].movedim(-1, 1), (8, 8), mode="area")
    assert (seen - small.movedim(1, -1)).abs().mean() < 0.04
    assert (seen - small.movedim(1, -1).flip(0)).abs().mean() > 0.1  # of others they do not


def test_formats_of_real_models_are_seen_and_one_without_colours_is_not(lab):
    import comfy.latent_formats as formats

    for latent, shape in ((formats.Flux(), (16, 6, 4)), (formats.Wan21(), (16, 1, 6, 4))):
        see, shown = glimpse(lab, latent, pause=60.0)
        see(noise(3, latent=shape))
        see(noise(3, latent=shape))  # too soon
        ((seen, scale),) = shown
        assert seen.shape == (3, 6, 4, 3) and scale == 16 and 0 <= seen.min() < seen.max() <= 1
    for without in (formats.LatentFormat(), SimpleNamespace()):
        see, shown = glimpse(lab, without)
        see(noise(3))
        assert not shown


def test_colours_that_do_not_fit_the_latents_end_no_training(lab, caplog):
    import comfy.latent_formats as formats

    see, shown = glimpse(lab, formats.Flux(), pause=0.0)
    see(noise(2, latent=(4, 6, 4)))
    see(noise(2, latent=(4, 6, 4)))
    assert not shown and len(caplog.records) == 1


def test_a_policy_tells_what_calls_without_gradients_expect(lab):
    with torch.inference_mode():
        policy, told = make_policy(lab, random_model(lab)), []
    policy.on_denoised = told.append
    with torch.inference_mode(False):
        x_t = noise(2)

        def work(velocity):
            with torch.no_grad():
                v_t = velocity(x_t, 0.4, "p0")
            velocity(x_t, 0.4, "p0").mean().backward()
            return v_t

        v_t = policy.run(work)
    assert len(told) == 1
    torch.testing.assert_close(told[0], x_t - 0.4 * v_t, rtol=1e-4, atol=1e-5)


def test_a_sampler_of_comfyui_tells_of_its_steps(lab):
    stream = lab.module("chunk_grpo_core.method.stream").Stream
    grid = lab.module("chunk_grpo_core.method.schedule").shifted_grid(4, 3.0)
    example = lab.module("chunk_grpo_core.prompts.example").Example.of("p0")
    with torch.inference_mode():
        policy, told = make_policy(lab, random_model(lab)), []
    policy.on_denoised = told.append
    sampler = any_sampler(lab, policy, "euler")
    with torch.inference_mode(False):
        x_0 = policy.run(lambda v: sampler.sample(stream(v), example, grid, noise(2), [1, 2]))
    assert len(told) == 4 and torch.allclose(told[-1].cpu(), x_0, atol=1e-5)


def test_the_node_shows_what_is_drawn_and_not_what_an_update_looks_at(lab, monkeypatch):
    training, events = (
        lab.module("nodes.bridge.training"),
        lab.module("chunk_grpo_core.train.events"),
    )
    shown = []
    monkeypatch.setattr(
        training, "show_progress", lambda bar, value, picture=None: shown.append(picture)
    )
    progress = training.Progress(3, lab.module("nodes.bridge.tiny")._Latent())
    progress._glimpse._pause = 0.0

    def sees():
        before = len(shown)
        progress.on_denoised(noise(2))
        return len(shown) - before

    group = SimpleNamespace(
        iteration=0, images=torch.rand(2, 8, 8, 3), rewards=torch.tensor([0.0, 1])
    )
    assert sees() == 1 and shown[-1].shape == (100, 198, 3)  # the base model is measured
    progress(events.RunStart(0, 3))
    assert sees() == 1
    progress(events.PhaseProgress(0, "score", 0.4))
    assert sees() == 0  # nor what a reward asks the model
    progress(events.RolloutEnd(0, None, group.images, group.rewards))
    assert shown[-1] is not None and sees() == 0
    progress(events.PhaseProgress(0, "update", 0.75))
    assert sees() == 0
    progress(events.IterationEnd(0, {}))
    assert sees() == 1
