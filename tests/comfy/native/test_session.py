"""A MODEL that was borrowed for training comes back as it was, whatever happened."""

from __future__ import annotations

import torch

from .models import (
    every_kind_of_weights,
    make_policy,
    noise,
    random_conditioning,
    random_model,
    sample,
    snapshot,
    train,
    unchanged,
    velocity_at,
)


def test_training_leaves_the_model_as_it_was(lab):
    with torch.inference_mode():
        for model in every_kind_of_weights(lab):
            with unchanged(model, random_conditioning()):
                policy = make_policy(lab, model)
                losses = train(policy, 4)
                assert losses[-1] < losses[0], losses
                assert policy.adapter.parameters()[0].dtype == torch.float32


def test_training_keeps_cudnn_attention_out_and_puts_it_back(lab):
    import comfy.ops
    from torch.nn.attention import SDPBackend

    def seen(velocity):
        return list(comfy.ops.SDPA_BACKEND_PRIORITY), torch.backends.cuda.cudnn_sdp_enabled()

    wanted = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    there = hasattr(comfy.ops, "SDPA_BACKEND_PRIORITY")  # on Windows with a GPU
    before = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", None)
    comfy.ops.SDPA_BACKEND_PRIORITY = list(wanted)
    try:
        with torch.inference_mode():
            found = make_policy(lab, random_model(lab)).run(seen)
        assert found == (wanted[1:], False), found
        assert wanted == comfy.ops.SDPA_BACKEND_PRIORITY
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        comfy.ops.SDPA_BACKEND_PRIORITY = before
        if not there:
            del comfy.ops.SDPA_BACKEND_PRIORITY


def test_an_exception_leaves_the_model_as_it_was(lab):
    with torch.inference_mode():
        model = random_model(lab)
        policy = make_policy(lab, model)
        for error in (RuntimeError("boom"), KeyboardInterrupt()):
            with unchanged(model, random_conditioning()):

                def work(velocity, error=error):
                    velocity(noise(1), 0.5, "p0").mean().backward()
                    raise error

                try:
                    policy.run(work)
                except (RuntimeError, KeyboardInterrupt) as caught:
                    assert caught is error
                else:
                    raise AssertionError("the exception was swallowed")
        assert len(train(policy)) == 2  # and it trains again at once


def test_cancel_inside_forward_and_backward_leaves_the_model_as_it_was(lab):
    import comfy.model_management as memory

    with torch.inference_mode():
        model = random_model(lab)
        policy = make_policy(lab, model)
        policy.adapter._activations.give_up()  # backward runs blocks, which look for a Cancel
        for in_backward in (False, True):
            with unchanged(model, random_conditioning()):

                def work(velocity, in_backward=in_backward):
                    loss = velocity(noise(1), 0.5, "p0").mean() if in_backward else None
                    memory.interrupt_current_processing()
                    loss.backward() if in_backward else velocity(noise(1), 0.5, "p0")

                try:
                    policy.run(work)
                except memory.InterruptProcessingException:
                    pass
                else:
                    raise AssertionError("Cancel was ignored")
        assert len(train(policy)) == 2


def test_an_injection_that_fails_halfway_is_undone(lab):
    adapter = lab.module("nodes.bridge.adapter")
    with torch.inference_mode():
        model = random_model(lab)
        policy = make_policy(lab, model)
        original, calls = adapter.kept_or_recomputed, []

        def failing(*given):
            calls.append(given)
            if len(calls) == 3:
                raise RuntimeError("boom")
            return original(*given)

        with unchanged(model, random_conditioning()):
            adapter.kept_or_recomputed = failing
            try:
                policy.run(lambda velocity: None)
            except RuntimeError as error:
                assert str(error) == "boom"
            else:
                raise AssertionError("nothing failed")
            finally:
                adapter.kept_or_recomputed = original


def test_a_model_that_carries_loras_is_trained_with_them(lab):
    """Standard and, where it exists, bypass LoRAs stay active in training and stay afterwards."""
    import comfy.sd

    names = ("load_lora_for_models", "load_bypass_lora_for_models")
    for load in [getattr(comfy.sd, name) for name in names if hasattr(comfy.sd, name)]:
        with torch.inference_mode():
            model = random_model(lab)
            first = make_policy(lab, model)
            train(first, 4)
            user, _ = load(model, None, first.lora_model(), 1.0, 0.0)
            before = sample(user, random_conditioning())
            policy = make_policy(lab, user)
            torch.testing.assert_close(
                policy.run(velocity_at()), first.run(velocity_at()), rtol=0, atol=1e-4
            )
            train(policy)
            assert torch.equal(sample(user, random_conditioning()), before)
            hooks = [len(child._forward_hooks) for child in user.model.modules()]
            assert not any(hooks)


def test_compiled_blocks_and_foreign_attention_are_left_out(lab):
    from comfy.patcher_extension import WrappersMP

    def forbidden(*args, **kwargs):
        raise AssertionError("this was to be left out of training")

    with torch.inference_mode():
        model = random_model(lab)
        model.model_options["transformer_options"]["optimized_attention_override"] = forbidden
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", forbidden)
        options = repr(model.model_options)
        train(make_policy(lab, model))
        assert repr(model.model_options) == options
        assert model.get_all_wrappers(WrappersMP.APPLY_MODEL) == [forbidden]


def test_a_dynamic_model_is_read_again_without_dynamic_vram(lab):
    with torch.inference_mode():
        model = random_model(lab)
        if not hasattr(model, "cached_patcher_init"):
            return  # this ComfyUI has no dynamic VRAM
        reads = []

        def read(disable_dynamic):
            reads.append(disable_dynamic)
            return random_model(lab)

        model.is_dynamic = lambda: True
        session = lab.module("nodes.bridge.session")
        assert session.without_dynamic_vram(model) is model  # it has no file
        model.cached_patcher_init = (read, ())
        policy = make_policy(lab, model)
        untouched = snapshot(model)
        policy.run(lambda velocity: velocity(noise(1), 0.5, "p0"))
        policy.run(lambda velocity: velocity(noise(1), 0.5, "p0"))
        assert reads == [True] and snapshot(model) == untouched
