"""Before a training uses scores it makes sure that they belong to their samples."""

from __future__ import annotations

import logging
import math
from itertools import combinations

import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config

from chunk_grpo_core.algorithms.algorithm import GroupRequest, SampledGroup
from chunk_grpo_core.algorithms.chunk_grpo import ChunkGrpo
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.reward import RewardBatch
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.tiny.policy import tiny_policy
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward
from chunk_grpo_core.rewards.function import FunctionReward
from chunk_grpo_core.train.self_test import STANDARD, RewardChain, SelfTestFailed
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


def sampled(policy, text="warm", size=4):
    noise, example = Noise(True, 3, size), Example.of(text)
    trajectory = policy.run(
        lambda velocity: rollout(
            velocity, example, shifted_grid(6, 2.0), SdeConfig(), noise, policy.latent_shape
        )
    )
    request = GroupRequest(
        iteration=0,
        number=0,
        samples=slice(0, size),
        example=example,
        noise=noise,
        latent_shape=policy.latent_shape,
    )
    return SampledGroup(request, trajectory)


def check(policy, reward, *, decoder=None, group=None, seconds=math.inf):
    """What a training does with a group."""
    group = group or sampled(policy)
    chain = RewardChain(decoder or policy, reward)
    images = (decoder or policy).decode(group.trajectory.x_0)
    scores = reward.score(images, [group.request.example] * len(images))
    chain.keep(group.trajectory, images)
    chain.check([group], [scores], seconds)


def test_a_right_chain_passes_and_asks_for_every_picture_alone():
    reward = Judge()
    check(ToyPolicy(), reward)
    assert reward.asked == [4, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["slow", "remote", "combined with a remote one"])
def test_a_slow_or_a_remote_reward_is_asked_for_four_pictures_of_a_group(kind):
    policy, reward = ToyPolicy(), Judge()
    reward.is_remote = kind != "slow"
    whole = (
        CombinedReward([WeightedReward(reward=reward, weight=1.0)])
        if "combined" in kind
        else reward
    )
    group = sampled(policy, size=12)
    check(policy, whole, group=group, seconds=0.0 if kind == "slow" else math.inf)
    assert reward.asked == [12, 1, 1, 1, 1]


def test_a_reward_that_ranks_a_group_gets_the_whole_group_again_and_in_another_order():
    def rank(images, examples):
        return images.mean((1, 2, 3)).argsort().argsort()

    right = FunctionReward(rank, name="rank", groupwise=True)
    check(ToyPolicy(), right)
    check(ToyPolicy(), CombinedReward([WeightedReward(reward=right, weight=1.0)]))
    wrong = FunctionReward(lambda *all: rank(*all).flip(0), name="rank", groupwise=True)
    with pytest.raises(SelfTestFailed, match="mixes up the pictures"):
        check(ToyPolicy(), wrong)


def exchanged(first, second):
    order = list(range(12))
    order[first], order[second] = second, first
    return lambda whole: whole[order] if len(whole) > 1 else whole


PAIRS = list(combinations(range(12), 2))


def test_every_exchange_of_two_pictures_of_a_group_of_12_is_caught(tiny_12):
    policy, group = tiny_12
    for pair in PAIRS:
        with pytest.raises(SelfTestFailed, match=r"sample \d+ that was .* it is that of sample"):
            check(policy, Judge(), decoder=Changed(policy, exchanged(*pair)), group=group)


def test_every_exchange_of_two_scores_of_a_local_reward_is_caught(tiny_12):
    policy, group = tiny_12
    for pair in PAIRS:
        with pytest.raises(SelfTestFailed, match="was trained with a score of"):
            check(policy, Judge(exchanged(*pair)), group=group)
    check(policy, Judge(), group=group)


def test_rounding_that_depends_on_the_batch_is_no_exchange(tiny_12):
    policy, group = tiny_12
    generator = torch.Generator().manual_seed(0)

    def rounded(values):  # by more than the distance of many neighbours
        return values + 0.05 * (values.amax() - values.amin()) * torch.rand(12, generator=generator)

    check(policy, Judge(lambda v: rounded(v) if len(v) > 1 else v), group=group)


def test_which_groups_are_looked_at_depends_on_the_seed_of_the_run(monkeypatch):
    looked_at = {"scores": set(), "gradients": set()}

    def check_chain(chain, groups, rewards, seconds):
        numbers = [g.request.number for g in groups if g.trajectory is chain._group]
        looked_at["scores"].update(numbers)

    def replayed(velocity, parameters, groups, **options):
        starts = [float(group.states[0].sum()) for group in groups[: STANDARD.cells]]
        looked_at["gradients"].update(map(in_order.index, starts))

    def task(algorithm, group, advantages, weight):
        in_order.append(float(group.trajectory.states[0].sum()))
        return plain(algorithm, group, advantages, weight)

    plain = ChunkGrpo.task
    monkeypatch.setattr(ChunkGrpo, "task", task)
    monkeypatch.setattr(RewardChain, "check", check_chain)
    monkeypatch.setattr("chunk_grpo_core.train.self_test.run.self_test", replayed)
    for seed in range(8):
        in_order: list[float] = []
        config = toy_config(iterations=1, seed=seed, prompts_per_iteration=4)
        Trainer(ToyPolicy(), Judge(), PROMPTS * 2, config).train()
    assert looked_at == {"scores": {0, 1, 2, 3}, "gradients": {0, 1, 2, 3}}


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


@pytest.fixture(scope="module")
def tiny_12(tiny):
    return tiny[0], sampled(tiny[0], caption(TRAIN[0]), size=12)


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
    assert 4 <= reward.asked.count(1) <= toy_config().group_size  # as time allows
