"""What backward needs is kept or computed again, and no gradient knows which."""

from __future__ import annotations

import torch

from .models import architecture_policy, make_policy, models, noise, random_model


def _gradients(lab, name, free):
    """Gradients of a policy on a device with ``free`` bytes for activations, and its decisions."""
    module = lab.module("nodes.bridge.policy")
    before, module.free_memory = module.free_memory, lambda device: free
    try:
        with torch.inference_mode():
            policy = architecture_policy(lab, name)
    finally:
        module.free_memory = before
    generator = torch.Generator().manual_seed(3)
    for factor in policy.adapter.parameters():
        factor.data += 0.05 * torch.randn(factor.shape, generator=generator)
    activations = policy.adapter._activations

    def work(velocity):
        for seed in (7, 9):  # the first call counts what the second then knows
            for factor in policy.adapter.parameters():
                factor.grad = None
            x_t, target = (noise(2, seed + k, latent=policy.latent_shape) for k in (0, 1))
            ((velocity(x_t, 0.6, "p0") - target) ** 2).mean().backward()

    with torch.inference_mode():
        policy.run(work)
    gradients = [parameter.grad for parameter in policy.adapter.parameters()]
    return gradients, len(activations._kept), activations._recomputed, sum(activations._kept)


def test_gradients_are_the_same_whatever_is_kept(lab):
    for name in models.ARCHITECTURES:
        all_kept, kept, recomputed, size = _gradients(lab, name, 1e12)
        assert kept > 0 and recomputed == 0, (name, kept, recomputed)
        assert size > 0 and any(gradient is not None for gradient in all_kept), name
        for free in (0.0, 0.6 * size):
            found, some, again, taken = _gradients(lab, name, free)
            assert some + again == kept and again > 0, (name, free, some, again)
            assert taken <= free, (name, free, taken)
            for a, b in zip(found, all_kept, strict=True):
                assert (a is None) == (b is None) and (a is None or torch.equal(a, b)), name


def test_a_lack_of_memory_is_met_by_computing_again_before_batches_are_halved(lab):
    with torch.inference_mode():
        policy = architecture_policy(lab, "flux")
    limit, tried = policy._limit, []

    def work():
        tried.append(limit.size)
        policy.run(lambda velocity: velocity(noise(2), 0.6, "p0").sum().backward())
        if len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    limit._running = 4
    with torch.inference_mode():
        limit.attempt(work)
    assert tried == [None, None, 2]
    assert policy.adapter._activations._kept == [] and policy.adapter._activations._recomputed > 0


def test_nothing_is_given_up_where_nothing_was_kept(lab):
    activations = lab.module("nodes.bridge.activations").Activations(lambda: 0.0)
    assert not activations.give_up()


def test_cast_weights_are_not_kept_and_give_the_same_gradients(lab):
    """8-bit weights with 32-bit products, and 16-bit ones, against autograd's own way."""
    adapter = lab.module("nodes.bridge.adapter")

    def trained(dtype, cast):
        with torch.inference_mode():
            model = random_model(lab, dtype, cast)
            policy = make_policy(lab, model)
        generator = torch.Generator().manual_seed(3)
        for factor in policy.adapter.parameters():
            factor.data += 0.05 * torch.randn(factor.shape, generator=generator)

        def work(velocity):
            (velocity(noise(2, 7), 0.6, "p0") - noise(2, 8)).square().mean().backward()
            policy.adapter._activations.begin()

        with torch.inference_mode():
            policy.run(work)
        sizes = policy.adapter._activations._sizes
        return [factor.grad for factor in policy.adapter.parameters()], sum(sizes.values())

    for dtype, cast in ((torch.float8_e4m3fn, torch.float32), (torch.bfloat16, torch.float32)):
        found, small = trained(dtype, cast)
        original, adapter._is_cast = adapter._is_cast, lambda *given: False
        try:
            wanted, large = trained(dtype, cast)
        finally:
            adapter._is_cast = original
        assert small < 0.8 * large, (small, large)
        for a, b in zip(found, wanted, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
