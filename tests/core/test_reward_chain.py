"""Before a training uses scores it makes sure that they belong to their samples."""

from __future__ import annotations

import logging

import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config

from chunk_grpo_core.algorithms.algorithm import GroupRequest, SampledGroup
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.reward import RewardBatch
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.tiny.policy import tiny_policy
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.train.self_test import RewardChain, SelfTestFailed
from chunk_grpo_core.train.trainer import Trainer


class Changed:
    """A policy whose decoder is wrong."""

    def __init__(self, policy, decode):
        self.policy, self.decode = policy, lambda x_0: decode(policy.decode(x_0))

    def encode(self, images):
        return getattr(self.policy, "encode", lambda images: None)(images)


class Judge(Brightness):
    """Brightness, through a function of all scores of a batch."""

    def __init__(self, change=lambda values: values):
        super().__init__()
        self.change, self.asked = change, []

    def score(self, images, examples):
        self.asked.append(len(images))
        return RewardBatch.of(self.change(super().score(images, examples).values))


def sampled(policy, text="warm"):
    noise, example = Noise(True, 3, 4), Example.of(text)
    trajectory = policy.run(
        lambda velocity: rollout(
            velocity, example, shifted_grid(6, 2.0), SdeConfig(), noise, policy.latent_shape
        )
    )
    request = GroupRequest(
        iteration=0,
        number=0,
        samples=slice(0, 4),
        example=example,
        noise=noise,
        latent_shape=policy.latent_shape,
    )
    return SampledGroup(request, trajectory)


def check(policy, reward, *, decoder=None, group=None):
    """What a training does with a group."""
    group = group or sampled(policy)
    chain = RewardChain(decoder or policy, reward)
    images = (decoder or policy).decode(group.trajectory.x_0)
    scores = reward.score(images, [group.request.example] * 4)
    chain.keep(group.trajectory, images)
    chain.check([group], [scores])


def test_a_right_chain_passes_and_asks_for_two_pictures():
    reward = Judge()
    check(ToyPolicy(), reward)
    assert reward.asked == [4, 1, 1]


@pytest.mark.parametrize("order", [lambda x: x.flip(0), lambda x: x.roll(1, 0)])
def test_a_decoder_that_mixes_up_the_group_is_caught(order):
    policy = ToyPolicy()
    with pytest.raises(SelfTestFailed, match="it is that of sample .* mixes up the samples"):
        check(policy, Judge(), decoder=Changed(policy, order))


@pytest.mark.parametrize("order", [lambda x: x.flip(0), lambda x: x.roll(1, 0)])
def test_a_reward_that_mixes_up_the_group_is_caught(order):
    with pytest.raises(
        SelfTestFailed, match="was trained with a score of .* mixes up the pictures"
    ):
        check(ToyPolicy(), Judge(order))


def test_a_reward_that_compares_the_pictures_of_a_batch_is_caught():
    with pytest.raises(SelfTestFailed, match="its scores depend on the other pictures"):
        check(ToyPolicy(), Judge(lambda values: values - values.mean()))


def test_a_reward_with_chance_in_it_is_only_warned_of(caplog):
    generator = torch.Generator().manual_seed(0)
    with caplog.at_level(logging.WARNING):
        check(ToyPolicy(), Judge(lambda v: v + torch.randn(v.shape, generator=generator)))
    assert "its scores are partly chance" in caplog.text


@pytest.fixture(scope="module")
def tiny():
    policy = tiny_policy()
    return policy, sampled(policy, caption(TRAIN[0]))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda images: 1.0 - images, "inverted"),
        (lambda images: images.flip(-1), "with red and blue exchanged"),
        (lambda images: images.flip(2), "mirrored"),
        (lambda images: images.flip(1), "upside down"),
    ],
)
def test_a_decoder_that_is_wrong_is_caught_where_pictures_can_be_encoded(tiny, change, name):
    policy, group = tiny
    with pytest.raises(SelfTestFailed, match=f"the decoder gives pictures that are {name}"):
        check(policy, Judge(), decoder=Changed(policy, change), group=group)


def test_a_right_decoder_passes(tiny):
    check(tiny[0], Judge(), group=tiny[1])


def test_a_training_stops_before_its_first_update():
    policy, reward = ToyPolicy(), Judge(lambda values: values.flip(0))
    before = policy.adapter.state_dict()
    with pytest.raises(SelfTestFailed, match="mixes up the pictures"):
        Trainer(policy, reward, PROMPTS, toy_config(iterations=2)).train()
    after = policy.adapter.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    Trainer(policy, reward, PROMPTS, toy_config(iterations=2, self_test=False)).train()


def test_a_training_checks_once():
    reward = Judge()
    Trainer(ToyPolicy(), reward, PROMPTS, toy_config(iterations=3)).train()
    assert reward.asked.count(1) == 2
