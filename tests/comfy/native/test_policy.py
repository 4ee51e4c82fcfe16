"""The policy's velocity is ComfyUI's own; its LoRA is the exported one."""

from __future__ import annotations

import logging

import torch

from .models import (
    every_kind_of_weights,
    make_policy,
    noise,
    random_conditioning,
    random_model,
    train,
    unchanged,
    velocity_at,
)


def _refused(build, *words):
    try:
        build()
    except ValueError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"accepted: {words}")


def test_a_shift_patch_of_another_kind_of_model_is_doubted(lab, caplog):
    from comfy_extras.nodes_model_advanced import (
        ModelSamplingAuraFlow,
        ModelSamplingFlux,
        ModelSamplingSD3,
    )

    shift_doubt = lab.module("nodes.bridge.shift_patch").shift_doubt
    model = random_model(lab)
    (sd3,) = ModelSamplingSD3().patch(model, 3.0)
    (aura,) = ModelSamplingAuraFlow().patch_aura(model, 1.73)
    (flux,) = ModelSamplingFlux().patch(model, 1.15, 0.5, 512, 512)
    assert [shift_doubt(fitting) for fitting in (model, aura, flux)] == ["", "", ""]
    assert "times up to 1000" in shift_doubt(sd3) and "ModelSamplingFlux" in shift_doubt(sd3)
    with caplog.at_level(logging.WARNING):
        make_policy(lab, sd3)
    assert "take the patch off" in caplog.text


def test_adapter_off_is_the_base_bit_for_bit(lab):
    with torch.inference_mode():
        model = random_model(lab)
        base = make_policy(lab, model).run(velocity_at())  # B = 0
        policy = make_policy(lab, model)
        train(policy)
        on = policy.run(velocity_at())

        def off(velocity):
            with policy.adapter.disabled():
                return velocity_at()(velocity)

        assert torch.equal(policy.run(off), base) and not torch.equal(on, base)


def test_a_policy_without_a_lora_gives_the_pictures_of_one_whose_lora_is_off(lab):
    with torch.inference_mode():
        for model in every_kind_of_weights(lab):
            alone, with_lora = make_policy(lab, model, targets=None), make_policy(lab, model)
            assert alone.adapter is None
            off = with_lora.run(velocity_at())  # B = 0
            with unchanged(model, random_conditioning()):
                assert torch.equal(alone.run(velocity_at()), off)
            assert alone.run(lambda velocity: torch.is_grad_enabled()) is False
            _refused(alone.lora_model, "without a LoRA")


def test_rollout_and_training_forward_agree_bit_for_bit(lab):
    """The ratio of the first update is exactly 1."""

    def work(velocity):
        rolled_out = velocity_at()(velocity)
        trained = velocity(noise(2), 0.6, "p0")
        assert trained.requires_grad and torch.equal(trained, rolled_out)

    with torch.inference_mode():
        for model in every_kind_of_weights(lab):
            policy = make_policy(lab, model)
            train(policy)
            policy.run(work)


def test_each_prompt_sees_only_its_own_conditioning(lab):
    with torch.inference_mode():
        model = random_model(lab)
        together = make_policy(lab, model, prompts=2)
        first, second = together.run(velocity_at("p0")), together.run(velocity_at("p1"))
        assert torch.equal(first, make_policy(lab, model).run(velocity_at("p0")))
        assert float((first - second).abs().max()) > 1e-2
        _refused(lambda: together.run(velocity_at("p9")), "p9")


def test_guidance_mixes_the_two_velocities(lab):
    with torch.inference_mode():
        model, negative = random_model(lab), random_conditioning(2, 7)
        guided = make_policy(lab, model, negative=negative, cfg=3.0).run(velocity_at())
        plain = make_policy(lab, model, prompts=2)  # p1 is conditioned like the negative
        yes, no = plain.run(velocity_at("p0")), plain.run(velocity_at("p1"))
        torch.testing.assert_close(guided, no + 3 * (yes - no), rtol=0, atol=1e-4)


def _warnings_of(action):
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        return action(), records
    finally:
        logging.getLogger().removeHandler(handler)


def test_the_exported_lora_is_the_trained_function(lab):
    import comfy.sd

    with torch.inference_mode():
        model = random_model(lab)
        policy = make_policy(lab, model)
        train(policy, 4)
        trained, lora = policy.run(velocity_at()), policy.lora_model()
        for tensor in lora.values():
            assert tensor.dtype == torch.float32 and tensor.device.type == "cpu"
            assert tensor.is_contiguous() and not tensor.is_inference()
        (loaded, _), warnings = _warnings_of(
            lambda: comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        )
        assert not warnings, warnings
        assert len(loaded.patches) == len(lora) // 3
        merged = make_policy(lab, loaded).run(velocity_at())  # a fresh adapter is the identity
        base = make_policy(lab, model).run(velocity_at())
        error, effect = float((merged - trained).abs().max()), float((trained - base).abs().max())
        print("exported LoRA: error", error, "of effect", effect)
        assert error <= 1e-4 < 0.1 < effect


def test_wrong_models_and_settings_are_refused(lab):
    import comfy.model_sampling

    class Other(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    with torch.inference_mode():
        model = random_model(lab)
        other = model.clone()
        other.add_object_patch("model_sampling", Other())
        _refused(lambda: make_policy(lab, other), "EPS", "flow-matching")
        _refused(lambda: make_policy(lab, model, targets="no.*"), "double_blocks.img_attn.qkv")
        _refused(lambda: make_policy(lab, model, prompts=0), "no prompts")
        _refused(lambda: make_policy(lab, model, cfg=2.0), "negative")
        controlled = random_conditioning()
        controlled[0][1]["control"] = object()
        _refused(lambda: make_policy(lab, model, negative=controlled, cfg=2.0), "control")


def test_adapter_state_survives_a_round_trip(lab):
    with torch.inference_mode():
        model = random_model(lab)
        policy, other = make_policy(lab, model), make_policy(lab, model)
        train(policy)
        parameters = other.adapter.parameters()
        other.adapter.load_state_dict(policy.adapter.state_dict())
        assert all(a is b for a, b in zip(parameters, other.adapter.parameters(), strict=True))
        for a, b in zip(parameters, policy.adapter.parameters(), strict=True):
            assert torch.equal(a, b) and a.requires_grad and not a.is_inference()
        assert "double_blocks.0.img_attn.qkv.lora_A.weight" in policy.adapter.state_dict()
