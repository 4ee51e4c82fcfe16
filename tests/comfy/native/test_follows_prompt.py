"""A native MODEL judges its own pictures as the library's model does."""

from __future__ import annotations

import torch

from .test_tiny import CAPTIONS, _asset, _encode, _policy


def _pictures():
    return torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(4))


def _bound(lab, policy):
    reward = lab.module("chunk_grpo_core.rewards").load_reward("follows_prompt")
    return lab.module("chunk_grpo_core.method.policy_reward").bound(reward, policy)


def test_scores_are_those_of_the_library_whatever_the_lora(lab):
    library = lab.module("chunk_grpo_core.models.tiny.policy")
    with _asset(lab) as (_, triple):
        path = lab.module("nodes.bridge.tiny").ASSET
        plain = _bound(lab, library.tiny_policy(path=path)).score(_pictures(), CAPTIONS).values
        policy = _policy(lab, triple, ("", *CAPTIONS))
        with torch.inference_mode(False):
            native = _bound(lab, policy)
            values = native.score(_pictures(), CAPTIONS).values
            for factor in policy.adapter.parameters():
                factor.data.fill_(0.2)
            trained = native.score(_pictures(), CAPTIONS).values
        assert torch.equal(values, trained)
        assert torch.allclose(values, plain, atol=1e-4), (values, plain)
        assert values.abs().max() > 1e-3


def test_classifier_free_guidance_is_off_while_it_judges_and_on_again_afterwards(lab):
    with _asset(lab) as (_, triple):
        policies = [
            _policy(lab, triple, ("", *CAPTIONS)),
            _policy(
                lab, triple, ("", *CAPTIONS), cfg=4.0, negative=_encode(triple[1], CAPTIONS[1])
            ),
        ]
        with torch.inference_mode(False):
            plain, guided = (
                _bound(lab, policy).score(_pictures(), CAPTIONS).values for policy in policies
            )
            assert torch.equal(plain, guided)
            x_t = torch.ones(1, *policies[0].latent_shape)
            at = [p.run(lambda v: v(x_t, 0.5, CAPTIONS[0]).detach()) for p in policies]
        assert not torch.allclose(*at, atol=1e-3)
