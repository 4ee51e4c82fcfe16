"""The SAMPLER of the pack draws what the library's rollouts and evaluations draw."""

from __future__ import annotations

import pytest
import torch

from .models import LATENT, make_policy, random_conditioning, random_model

SEED, STEPS = 11, 6


def sampled(model, sampler, sigmas, x_1):
    """Latents of SamplerCustomAdvanced, without guidance."""
    import comfy.sample

    conditioning = random_conditioning()
    return comfy.sample.sample_custom(
        model, x_1, 1.0, sampler, sigmas, conditioning, conditioning, torch.zeros_like(x_1),
        disable_pbar=True, seed=SEED,
    )  # fmt: skip


@pytest.mark.parametrize("rule", ["flow", "dance", "cps", "ode"])
def test_the_sampler_walks_as_a_rollout_with_the_same_noise(lab, rule):
    import comfy.samplers

    with torch.inference_mode():
        model = random_model(lab)
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
        sde = lab.module("chunk_grpo_core.method.rules").SdeConfig(rule=rule, eta=0.7)
        noise = lab.module("chunk_grpo_core.method.noise").Noise(False, SEED, 2)
        grid = lab.module("chunk_grpo_core.method.schedule").TimeGrid.of(sigmas)
        rollout = lab.module("chunk_grpo_core.method.rollout").rollout
        sample_ode = lab.module("chunk_grpo_core.method.walk").sample_ode
        x_1 = noise.initial(LATENT)
        policy = make_policy(lab, model)
        group = policy.run(lambda velocity: rollout(velocity, "p0", grid, sde, noise, LATENT))
        plain = policy.run(lambda velocity: sample_ode(velocity, "p0", grid, x_1))
        sampler = lab.module("nodes.bridge.sampler").flow_sde_sampler(sde)
        shown = sampled(model, sampler, sigmas, x_1)
        euler = sampled(model, comfy.samplers.sampler_object("euler"), sigmas, x_1)
        if rule == "ode":
            assert torch.equal(group.x_0, plain)
        for latents, x_0 in ((shown, group.x_0), (euler, plain)):
            want = model.model.process_latent_out(x_0)
            assert float((latents - want).abs().max() / want.abs().max()) < 1e-4
        is_far = float((shown - euler).abs().max() / euler.abs().max()) > 1e-2
        assert is_far == (rule != "ode")


def test_the_sampler_tells_its_callback_every_step_in_order(lab):
    import comfy.sample

    with torch.inference_mode():
        model, heard = random_model(lab), []
        sde = lab.module("chunk_grpo_core.method.rules").SdeConfig()
        sampler = lab.module("nodes.bridge.sampler").flow_sde_sampler(sde)
        sigmas = torch.tensor([1.0, 0.8, 0.5, 0.0])
        x_1, conditioning = torch.randn(1, *LATENT), random_conditioning()
        comfy.sample.sample_custom(
            model, x_1, 1.0, sampler, sigmas, conditioning, conditioning, torch.zeros_like(x_1),
            callback=lambda step, x_0, x, total: heard.append((step, x.clone(), total)),
            disable_pbar=True, seed=SEED,
        )  # fmt: skip
        assert [(step, total) for step, _, total in heard] == [(0, 3), (1, 3), (2, 3)]
        assert torch.equal(heard[0][1], x_1)


@pytest.mark.parametrize("rule", ["flow", "ode"])
@pytest.mark.parametrize(
    ("sigmas", "word"),
    [
        ([0.0001, 0.5, 1.0], "0.5 follows 0.0001"),  # FlipSigmas
        ([1.0, 0.5, 0.5, 0.0], "0.5 follows 0.5"),
        ([1.0, 0.4, 0.6, 0.0], "follows 0.4"),
        ([1.0, float("nan"), 0.0], "number 2 is nan"),
        ([1.0, 0.5, -0.5], "number 3 is -0.5"),
        ([14.6, 1.0, 0.0], "number 1 is 14.6"),
        ([1.0], "there are 1 sigmas"),
    ],
)
def test_sigmas_that_are_no_walk_are_named(lab, rule, sigmas, word):
    sde = lab.module("chunk_grpo_core.method.rules").SdeConfig(rule=rule)
    module = lab.module("nodes.bridge.sampler")
    model = type("Guider", (), {"inner_model": type("Inner", (), {"model_patcher": None})})
    check, module.check_flow_model = module.check_flow_model, lambda patcher: None
    try:
        module.flow_sde_sampler(sde).sampler_function(
            model, torch.zeros(1, 4), torch.tensor(sigmas), chunk_grpo_sde=sde
        )
    except ValueError as error:
        assert "sigmas of the Flow SDE Sampler" in str(error) and word in str(error)
    else:
        raise AssertionError(f"walked {sigmas}")
    finally:
        module.check_flow_model = check


def test_the_sampler_begins_just_below_one_as_it_begins_at_one(lab):
    with torch.inference_mode():
        model = random_model(lab)
        sde = lab.module("chunk_grpo_core.method.rules").SdeConfig()
        sampler = lab.module("nodes.bridge.sampler").flow_sde_sampler(sde)
        noise = lab.module("chunk_grpo_core.method.noise").Noise(False, SEED, 2).initial(LATENT)
        one, below = (
            sampled(model, sampler, torch.tensor([first, 0.9, 0.6, 0.3, 0.0]), noise)
            for first in (1.0, 0.99999994)
        )
        assert torch.allclose(one, below, atol=1e-3)
