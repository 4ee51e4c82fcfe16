"""Native training on a small card: halved batches, checkpoints in system memory, single decodes."""

from __future__ import annotations

import contextlib
import weakref
from types import SimpleNamespace

import torch

from .models import (
    LATENT,
    architecture_policy,
    make_policy,
    noise,
    random_model,
    snapshot,
    velocity_at,
)
from .page_server import page_server


@contextlib.contextmanager
def _replaced(owner, **values):
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _model_of(lab, fits):
    """A MODEL whose network runs out of memory with more than ``fits`` samples; and the sizes."""
    model, sizes = random_model(lab), []

    def check(module, inputs):
        sizes.append(len(inputs[0]))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.diffusion_model.register_forward_pre_hook(check)
    return model, sizes


def _stir(policy):
    """Move the factors B away from 0, so that everything has a gradient."""
    generator = torch.Generator().manual_seed(3)
    for factor in policy.adapter.parameters():
        factor.data += 0.05 * torch.randn(factor.shape, generator=generator)
    return policy


# Halved batches

TRIES = 3
"""Calls of two samples that find out whether a MODEL takes a time for each."""


def test_a_call_that_does_not_fit_is_done_in_pieces_and_the_user_is_told(lab):
    import comfy.model_management as memory

    model, sizes = _model_of(lab, 2)
    emptied, told = [], []
    page = SimpleNamespace(
        last_node_id="7", client_id="me", send_progress_text=lambda *args: told.append(args)
    )
    with page_server(page):
        with (
            torch.inference_mode(),
            _replaced(memory, soft_empty_cache=lambda: emptied.append(len(sizes))),
        ):
            policy = _stir(make_policy(lab, model, batch=5))
            limit = lab.module("nodes.bridge.memory").batch_limit(None)

            def whole(velocity):
                return velocity_at(batch=5)(limit.fit(velocity))

            found = policy.run(whole)
    assert sizes == [2] * TRIES + [5, 2, 2, 1] and limit.size == 2
    assert TRIES + 1 in emptied  # after the call that failed, before the next one
    assert len(told) == 1 and told[0][1:] == ("7", "me")
    assert "5 pictures" in told[0][0] and "batch_size 2" in told[0][0]
    wanted = _stir(make_policy(lab, random_model(lab), batch=5)).run(velocity_at(batch=5))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_training_that_runs_out_of_memory_is_that_of_a_smaller_batch(lab):
    core = lab.module("chunk_grpo_core")
    trainer = lab.module("chunk_grpo_core.train.trainer").Trainer
    base = lab.module("chunk_grpo_core.method.reward")
    memory = lab.module("nodes.bridge.memory")

    class Brightness:
        name, fingerprint = "brightness", {}

        def score(self, images, prompts):
            return base.RewardBatch.of(images.mean((1, 2, 3)))

    def trained(fits, batch_size):
        model, sizes = _model_of(lab, fits)
        with torch.inference_mode():
            make_policy(lab, model).run(lambda velocity: None)
            before = snapshot(model)  # of a loaded model: loading leaves marks of its own
            config = core.TrainConfig(
                grid=core.shifted_grid(3, 3.0),
                plan=core.read_plan("1, 1", 2),
                iterations=1,
                prompts_per_iteration=2,
                group_size=4,
                batch_size=batch_size,
                self_test=False,
            )
            limit = memory.batch_limit(batch_size)
            policy = make_policy(lab, model, prompts=2, batch=4, limit=limit)
            policy.decode = lambda x_0: x_0[:, :3].permute(0, 2, 3, 1).sigmoid()
            with torch.inference_mode(False):
                trainer(policy, Brightness(), ["p0", "p1"], config, limit=limit).train()
            assert snapshot(model) == before
        return torch.cat([p.detach().flatten() for p in policy.adapter.parameters()]), sizes, limit

    found, sizes, limit = trained(fits=2, batch_size=None)
    assert sizes[TRIES : TRIES + 3] == [4, 2, 2] and limit.size == 2
    assert torch.equal(found, trained(fits=99, batch_size=2)[0])


def test_comfyui_is_asked_for_less_memory_once_less_fits(lab):
    policies = lab.module("nodes.bridge.policy")
    limit, asked = lab.module("nodes.bridge.memory").batch_limit(None), []
    original = policies.training_session

    def session(model, adapter, shape):
        asked.append(shape)
        return original(model, adapter, shape)

    with torch.inference_mode(), _replaced(policies, training_session=session):
        policy = make_policy(lab, random_model(lab), batch=6, limit=limit)
        for limit.size in (None, 8, 2):
            policy.run(velocity_at())
    assert [tuple(shape) for shape in asked] == [(6, *LATENT), (6, *LATENT), (2, *LATENT)]


def test_what_counts_as_running_out_of_memory(lab):
    import comfy.model_management as memory

    test = lab.module("nodes.bridge.memory").is_out_of_memory

    class Other(Exception):
        pass

    assert test(torch.OutOfMemoryError("x"))
    for error in (RuntimeError("boom"), memory.InterruptProcessingException()):
        assert not test(error)
    assert not test(Other())
    if hasattr(memory, "is_oom"):  # newer: also what CUDA reports by itself, outside the allocator
        accelerator = memory.ACCELERATOR_ERROR
        assert test(accelerator("CUDA error: out of memory")) and not test(accelerator("boom"))
    with _replaced(memory, OOM_EXCEPTION=Other):
        assert test(Other()) and not test(RuntimeError("boom"))
    with _replaced(memory, OOM_EXCEPTION=Exception):  # where torch has no such error
        assert test(torch.OutOfMemoryError("x")) and not test(RuntimeError("boom"))


# Decoding


def test_pictures_are_decoded_one_by_one_and_so_are_never_tiled_together(lab):
    _, _, vae = lab.module("nodes.bridge.tiny").load_tiny()
    sizes, original = [], vae.first_stage_model.decode

    def decode(latents, **options):
        sizes.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")  # ComfyUI would decode in tiles
        return original(latents, **options)

    with torch.inference_mode():
        policy = make_policy(lab, random_model(lab), vae=vae)
        wanted = vae.decode(noise(3))
        with _replaced(vae.first_stage_model, decode=decode):
            found = policy.decode(noise(3))
    assert sizes == [1, 1, 1] and not found.is_inference()
    torch.testing.assert_close(found, wanted[..., :3].clamp(0, 1).cpu(), rtol=0, atol=1e-5)


# Checkpoints in system memory


def _gradients(policy):
    def work(velocity):
        x_t, target = (noise(2, seed, latent=policy.latent_shape) for seed in (7, 8))
        ((velocity(x_t, 0.6, "p0") - target) ** 2).mean().backward()

    _stir(policy).run(work)
    return [parameter.grad for parameter in policy.adapter.parameters()]


def test_offloaded_checkpoints_give_the_same_gradients_to_the_last_bit(lab):
    for name in ("flux", "sd3", "qwen_image"):  # blocks are called in other ways
        with torch.inference_mode():
            found = _gradients(architecture_policy(lab, name, activation_offloading=True))
            wanted = _gradients(architecture_policy(lab, name))
        assert any(gradient is not None for gradient in wanted), name
        for a, b in zip(found, wanted, strict=True):
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b)), name


def test_offloading_leaves_the_model_as_it_was_and_changes_no_rollout(lab):
    with torch.inference_mode():
        model = random_model(lab)
        plain = make_policy(lab, model).run(velocity_at())
        before = snapshot(model)
        policy = make_policy(lab, model, activation_offloading=True)
        assert torch.equal(policy.run(velocity_at()), plain)
        _gradients(policy)
        assert snapshot(model) == before
    x = torch.ones(2, requires_grad=True)
    y = x * x  # no hook for saved tensors is left behind
    assert y.grad_fn._saved_self.data_ptr() == x.data_ptr()


def _is_kept(lab, offload):
    """Whether what went into a block, and what all blocks share, is in memory before backward."""
    import numpy

    checkpointed = lab.module("nodes.bridge.autograd").checkpointed
    memory = {name: numpy.ones(4, numpy.float32) for name in ("state", "shared")}
    watched = {name: weakref.ref(array) for name, array in memory.items()}

    class Start(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return torch.from_numpy(memory["state"])  # has the array's memory as long as it lives

        @staticmethod
        def backward(ctx, gradient):
            return gradient.sum()

    def block(x, positions):
        return torch.sin(x * positions)

    weight, shared = torch.ones((), requires_grad=True), torch.from_numpy(memory["shared"])
    x = Start.apply(weight)
    memory.clear()
    for positional in (True, False):
        run = checkpointed(block, offload)
        x = run(x, shared) if positional else run(x=x, positions=shared)
    del run, shared
    kept = {name: array() is not None for name, array in watched.items()}
    x.sum().backward()
    expected = torch.ones((), requires_grad=True)
    (4 * torch.sin(torch.sin(expected))).backward()
    torch.testing.assert_close(weight.grad, expected.grad)
    return kept


def test_offloaded_states_leave_the_device_and_what_blocks_share_stays(lab):
    assert _is_kept(lab, offload=False) == {"state": True, "shared": True}
    assert _is_kept(lab, offload=True) == {"state": False, "shared": True}
