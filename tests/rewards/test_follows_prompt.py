"""The model that is trained judges its own pictures."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config
from torch import Tensor
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.method.noise import derive_seed
from chunk_grpo_core.method.policy_reward import bound, needs_policy, units_of_reward
from chunk_grpo_core.models.tiny.model import load_tiny_flux, sample_images
from chunk_grpo_core.models.tiny.policy import tiny_policy
from chunk_grpo_core.models.tiny.reward import TinyWorldReward
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.balance import BalancedReward
from chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.trainer import Trainer

LEVELS = (0.95, 0.9, 0.8, 0.7)


class EncodingPolicy(ToyPolicy):
    """A toy policy whose pictures lead back to latents; the fourth channel is lost."""

    def encode(self, images: Tensor) -> Tensor:
        colours = images.clamp(1e-3, 1 - 1e-3).logit().permute(0, 3, 1, 2)
        return torch.cat([colours, torch.zeros_like(colours[:, :1])], 1)


def pictures(count: int = 4) -> Tensor:
    return torch.rand(count, 4, 4, 3, generator=torch.Generator().manual_seed(3))


def judge(policy, **settings):
    return bound(load_reward("follows_prompt", **settings), policy)


def moved(policy):
    """The policy with an adapter that does something."""
    for factor in policy.adapter.parameters():
        factor.data.fill_(0.3)
    return policy


@pytest.mark.parametrize("draws", [1, 3])
def test_a_score_is_how_much_the_caption_lowers_the_error_of_the_velocity(draws):
    policy, images = EncodingPolicy(), pictures()
    scores = judge(policy, draws=draws, seed=7).score(images, ["warm"] * 4).values
    dice = torch.Generator().manual_seed(derive_seed("follows_prompt", 7, "warm"))
    expected = torch.zeros(4, dtype=torch.float64)
    for t in LEVELS:
        for _ in range(draws):
            noise = torch.randn(4, 4, 4, generator=dice)
            for number, image in enumerate(images):
                x_0 = policy.encode(image[None])
                x_t = x_0 + t * (noise - x_0)
                off = [policy.velocity(x_t, t, c).detach() + x_0 - noise for c in ("", "warm")]
                errors = [float((one.double() ** 2).sum()) / 64 for one in off]
                expected[number] += (errors[0] - errors[1]) / (4 * draws)
    assert torch.allclose(scores.double(), expected, atol=1e-6)
    assert expected.abs().max() > 1e-3


def test_a_score_depends_on_its_own_picture_and_caption_alone():
    reward, images = judge(EncodingPolicy()), pictures()
    texts = [Example("warm"), Example("cold"), Example("warm", {"a": 1}), Example("cold")]
    values = reward.score(images, texts).values
    assert torch.equal(reward.score(images, texts).values, values)
    alone = [reward.score(images[i : i + 1], texts[i : i + 1]).values for i in range(4)]
    assert torch.equal(torch.cat(alone), values)
    assert torch.equal(reward.score(images.flip(0), texts[::-1]).values.flip(0), values)
    assert reward.score(images[:0], []).values.shape == (0,)


def test_a_picture_that_is_not_finite_has_no_score_and_spoils_no_other():
    reward, images = judge(EncodingPolicy()), pictures()
    whole = reward.score(images, ["warm"] * 4)
    images[1] = torch.nan
    batch = reward.score(images, ["warm"] * 4)
    assert batch.valid.tolist() == [True, False, True, True]
    assert torch.equal(batch.values[[0, 2, 3]], whole.values[[0, 2, 3]])


def test_the_judge_is_the_model_without_its_lora():
    fresh, trained = EncodingPolicy(), moved(EncodingPolicy())
    values = [judge(policy).score(pictures(), ["warm"] * 4).values for policy in (fresh, trained)]
    assert torch.equal(*values)
    assert trained.adapter.is_on


def test_guidance_by_a_negative_prompt_is_off_while_it_judges():
    class Guided(EncodingPolicy):
        scale = 4.0

        @contextmanager
        def unguided(self):
            before, self.scale = self.scale, 1.0
            yield
            self.scale = before

        def velocity(self, x_t, t, example):
            return self.scale * super().velocity(x_t, t, example)

    policy = Guided()
    values = judge(policy).score(pictures(), ["warm"] * 4).values
    assert torch.equal(values, judge(EncodingPolicy()).score(pictures(), ["warm"] * 4).values)
    assert policy.scale == 4.0


def test_a_real_adapter_that_is_off_stays_off_after_an_inner_switch():
    policy = tiny_policy()
    moved(policy)
    x_t, text = torch.ones(1, *policy.latent_shape), caption(TRAIN[0])

    def velocity():
        with torch.no_grad():
            return policy.run(lambda v: v(x_t, 0.5, text))

    with policy.adapter.disabled():
        base = velocity()
        with policy.adapter.disabled():
            assert torch.equal(velocity(), base)
        assert torch.equal(velocity(), base)
    assert not torch.equal(velocity(), base)


def combinations():
    judged = load_reward("follows_prompt")
    parts = [WeightedReward(reward=one, weight=0.5) for one in (judged, Brightness())]
    both = CombinedReward(parts)
    return {"alone": judged, "combined": both, "balanced": BalancedReward(Brightness(), both, 0.3)}


@pytest.mark.parametrize("kind", combinations())
def test_every_combination_is_bound_with_its_parts_and_stays_the_same_reward(kind):
    reward = combinations()[kind]
    assert needs_policy(reward) and units_of_reward(reward) == 8
    with pytest.raises(ValueError, match="asks the model that is trained, and there is none here"):
        reward.score(pictures(), ["warm"] * 4)
    there = bound(reward, EncodingPolicy())
    assert needs_policy(reward) and not needs_policy(there)
    assert (there.name, there.fingerprint) == (reward.name, reward.fingerprint)
    assert units_of_reward(there) == 8
    batch = there.score(pictures(), ["warm"] * 4)
    expected = judge(EncodingPolicy()).score(pictures(), ["warm"] * 4).values
    own = [v for name, v in batch.details.items() if name.endswith("follows_prompt")]
    assert torch.equal(own[0] if own else batch.values, expected)
    assert bound(there, ToyPolicy()) is there


def test_rewards_without_a_need_are_left_as_they_are():
    reward = Brightness()
    assert bound(reward, ToyPolicy()) is reward and units_of_reward(reward) == 0
    plain = CombinedReward([WeightedReward(reward=reward)])
    assert not needs_policy(plain) and bound(plain, ToyPolicy()) is plain


def test_it_refuses_what_cannot_work():
    with pytest.raises(ValueError, match="draws is 0; it must be from 1 to 64"):
        load_reward("follows_prompt", draws=0)
    with pytest.raises(ValueError, match="toy has no encoder .* choose another"):
        judge(ToyPolicy())
    without_vae = EncodingPolicy()
    without_vae.encode = lambda images: None
    with pytest.raises(ValueError, match="toy has no encoder .* choose another"):
        judge(without_vae).score(pictures(), ["warm"] * 4)
    with pytest.raises(ValueError, match="score_while_sampling is on, but .* turn it off"):
        config = toy_config(score_while_sampling=True)
        Trainer(EncodingPolicy(), combinations()["balanced"], PROMPTS, config)


def experiment(folder, iterations, resume=False):
    policy, reward = EncodingPolicy(), combinations()["balanced"]
    config = toy_config(iterations=iterations, self_test=not resume, evaluate_every=2)
    run_experiment(policy, reward, PROMPTS, ["a", "b"], config, RunFolder(folder), resume=resume)
    return policy.adapter.state_dict()


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(tmp_path):
    whole = experiment(tmp_path / "whole", 4)
    experiment(tmp_path / "stopped", 2)
    stopped = experiment(tmp_path / "stopped", 4, resume=True)
    assert all(torch.equal(stopped[name], weight) for name, weight in whole.items())
    rows = (tmp_path / "whole" / "held_out.jsonl").read_text().splitlines()
    gains = [json.loads(row)["rewards"] for row in rows]  # what the alarm reward-fell reads
    assert all("brightness" in row for row in gains)
    record = (tmp_path / "whole" / "run.toml").read_text()
    assert "the model that is trained, without its LoRA" in record


def test_on_the_tiny_flux_it_tells_which_pictures_follow_their_captions():
    captions = [caption(scene) for scene in TRAIN[:8]]
    texts = [text for text in captions for _ in range(8)]
    images = sample_images(load_tiny_flux(), texts, 11).clamp(0, 1)
    truth = TinyWorldReward().score(images, texts).values.view(8, 8)
    reward = judge(tiny_policy())
    scores = reward.score(images, texts).values
    wrong = reward.score(images, texts[8:] + texts[:8]).values
    assert (scores > wrong).float().mean() > 0.8
    inside = [
        float(torch.corrcoef(torch.stack(rows))[0, 1])
        for rows in zip(scores.view(8, 8), truth, strict=True)
    ]
    assert sum(inside) / 8 > 0.6


def test_commands_without_a_model_say_where_it_can_score(tmp_path):
    from chunk_grpo_core.watch.pictures import save_png

    image = save_png(torch.ones(8, 8, 3), tmp_path / "x.png")
    for words in (
        ("score", str(image), "--reward", "follows_prompt", "--prompt", "a"),
        ("serve-reward", "follows_prompt"),
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and "asks the model that is trained" in done.stderr
        assert "Traceback" not in done.stderr
