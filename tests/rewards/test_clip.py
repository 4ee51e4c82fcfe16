"""CLIPScore, PickScore and HPSv2 on tiny networks: the formula, and what must change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_rewards import (
    PROMPTS,
    clip_shape,
    pictures,
    reference_clip,
    write_clip,
    write_clip_tokenizer,
)

from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.networks import clipscore, hpsv2, pickscore
from chunk_grpo_core.rewards.networks.network import NetworkReward
from chunk_grpo_core.rewards.networks.tokens import clip_tokens
from chunk_grpo_core.rewards.pixels import cropped, letterboxed, normalised, to_levels

IMAGES = pictures(3)
NAMES = ("clipscore", "pickscore", "hpsv2")
each_reward = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Give a folder with tiny files of all three rewards, and the network they hold."""
    folder = tmp_path_factory.mktemp("models")
    shape = clip_shape(write_clip_tokenizer(folder / "tokenizer"))
    network = reference_clip(shape)
    for name in ("clipscore", "pickscore"):
        write_clip(folder / name, network)
    (folder / "hpsv2").mkdir()
    for weights in hpsv2.WEIGHTS.values():
        torch.save({"state_dict": network.state_dict()}, folder / "hpsv2" / weights.name)
    return folder, shape, network


@pytest.fixture
def load(world, monkeypatch):
    """Give a function that loads a tiny reward by name."""
    folder, shape, _ = world
    for module in (hpsv2, pickscore):
        monkeypatch.setattr(module, "CLIP_H", shape)
    monkeypatch.setattr(clipscore, "_SHAPES", {"clip-l": shape, "clip-h": shape})

    def load(name="pickscore", **settings):
        places = {"folders": [folder], "tokenizers": [folder / "tokenizer"]}
        return load_reward(name, **{**places, **settings})

    return load


def reference(world, square, images=IMAGES, prompts=PROMPTS):
    """Cosines and the temperature, from transformers' own forward pass of both towers."""
    folder, shape, network = world
    squares = torch.stack([square(levels, shape.image) for levels in to_levels(images)])
    ids, mask = clip_tokens([folder / "tokenizer"])(prompts)
    with torch.no_grad():
        logits = network(input_ids=ids, attention_mask=mask, pixel_values=normalised(squares))
    temperature = network.logit_scale.exp().item()
    return logits.logits_per_image.diagonal() / temperature, temperature


def test_the_tiny_network_tells_pictures_and_prompts_apart(load):
    reward = load("clipscore")
    table = torch.stack([reward.score(IMAGES, [prompt] * 3).values for prompt in PROMPTS])
    assert table.std(0).min() > 1e-3 and table.std(1).min() > 1e-3


def test_pickscore_is_what_the_network_calls_its_logits(load, world):
    cosines, temperature = reference(world, cropped("floor"))
    found = load("pickscore").score(IMAGES, PROMPTS).values
    torch.testing.assert_close(found, temperature * cosines, rtol=0, atol=1e-4)


def test_the_three_conventions_of_clipscore(load, world):
    cosines, _ = reference(world, cropped("round"))
    assert cosines.min() < 0 < cosines.max(), "the paper's convention needs both signs"
    for convention, expected in (
        ("cosine", cosines),
        ("percent", 100 * cosines),
        ("paper", 2.5 * cosines.clamp(min=0)),
    ):
        found = load("clipscore", convention=convention).score(IMAGES, PROMPTS)
        torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-4)
        assert found.valid.all()


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_hpsv2_is_the_cosine_with_the_whole_picture_in_view(load, world, version):
    cosines, _ = reference(world, letterboxed)
    found = load("hpsv2", version=version).score(IMAGES, PROMPTS).values
    torch.testing.assert_close(found, cosines, rtol=0, atol=1e-5)
    hundred = load("hpsv2", version=version, scale=100.0).score(IMAGES, PROMPTS).values
    torch.testing.assert_close(hundred, 100 * found)


def test_each_reward_sees_pictures_its_own_way(load):
    crop = load("clipscore").score(IMAGES, PROMPTS).values
    whole = load("hpsv2").score(IMAGES, PROMPTS).values
    assert (crop - whole).abs().max() > 1e-3


@each_reward
def test_neither_order_nor_batch_size_changes_a_score(load, name):
    images, prompts = pictures(5, seed=3), [*PROMPTS, "", "a red dog"]
    together = load(name).score(images, prompts).values
    small = load(name, batch_size=2)
    torch.testing.assert_close(small.score(images, prompts).values, together, rtol=1e-5, atol=1e-5)
    order = [3, 0, 4, 2, 1]
    turned = small.score(images[order], [prompts[i] for i in order]).values
    torch.testing.assert_close(turned, together[order], rtol=1e-5, atol=1e-5)
    alone = [small.score(images[i : i + 1], prompts[i : i + 1]).values[0] for i in range(5)]
    torch.testing.assert_close(torch.stack(alone), together, rtol=1e-5, atol=1e-5)


@each_reward
def test_autocast_around_it_and_gradients_change_no_score(load, name):
    reward = load(name)
    expected = reward.score(IMAGES, PROMPTS).values
    fresh = load(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fresh.score(IMAGES.requires_grad_(False), PROMPTS).values
    assert torch.equal(found, expected)
    weight = torch.ones(3, requires_grad=True)
    (weight * found).sum().backward()  # scores are ordinary tensors afterwards
    assert torch.equal(weight.grad, expected)


def test_pictures_are_judged_as_they_would_be_saved(load):
    reward = load("hpsv2")
    noise = (torch.rand_like(IMAGES) - 0.5) * 0.9 / 255
    saved = reward.score(IMAGES, PROMPTS).values
    assert torch.equal(reward.score(IMAGES + noise, PROMPTS).values, saved)


def test_a_prompt_is_encoded_once_for_a_group(load, monkeypatch):
    reward = load()
    encoded = []
    encode = reward._texts._encode
    monkeypatch.setattr(
        reward._texts, "_encode", lambda texts: encoded.extend(texts) or encode(texts)
    )
    first = reward.score(IMAGES, ["red dog", "red dog", "cat"]).values
    second = reward.score(IMAGES, ["cat", "red dog", "cat"]).values
    assert encoded == ["red dog", "cat"]
    assert first[1] == second[1] and first[2] == second[2] and first[0] != second[0]


def test_the_memory_for_prompts_is_bounded(load, monkeypatch):
    from chunk_grpo_core.rewards.networks import network as networks

    monkeypatch.setattr(networks, "_REMEMBERED_PROMPTS", 2)
    reward = load()
    prompts = ["cat", "dog", "red"]  # more at once than are remembered
    found = reward.score(IMAGES, prompts).values
    assert list(reward._texts._known) == ["dog", "red"]
    torch.testing.assert_close(reward.score(IMAGES, prompts).values, found)


# Hostile inputs


@each_reward
def test_a_picture_that_is_not_finite_has_no_score_and_spoils_no_other(load, name):
    reward = load(name)
    images = IMAGES.repeat(2, 1, 1, 1)
    images[1, 3, 4, 0], images[2], images[4, 0, 0] = math.nan, math.inf, -math.inf
    batch = reward.score(images, [*PROMPTS, *PROMPTS])
    assert batch.valid.tolist() == [True, False, False, True, False, True]
    assert batch.known.isnan().tolist() == (~batch.valid).tolist()
    clean = reward.score(IMAGES, PROMPTS).values
    torch.testing.assert_close(batch.values[[0, 3, 5]], clean[[0, 0, 2]], rtol=1e-5, atol=1e-5)


def test_nothing_but_bad_pictures_and_nothing_at_all(load):
    reward = load()
    assert not reward.score(torch.full((2, 8, 8, 3), math.nan), ["a", "b"]).valid.any()
    assert reward.score(torch.zeros(0, 8, 8, 3), []).values.shape == (0,)


@each_reward
@pytest.mark.parametrize("prompt", ["", " ", "cat " * 500, "x" * 2000, "\U0001f431", "\x00\ufffd"])
def test_any_prompt_has_a_score(load, name, prompt):
    assert load(name).score(IMAGES[:1], [prompt]).valid.all()


@each_reward
@pytest.mark.parametrize("token", ["<|endoftext|>", "<|startoftext|>"])
def test_a_special_token_in_a_prompt_does_not_end_it(load, name, token):
    reward = load(name)
    plain, longer, other = (
        reward.score(IMAGES[:1], [f"cat {token} {rest}"]).values[0] for rest in ("", "red", "blue")
    )
    # Had the token ended the prompt, what follows would not count.
    assert plain != longer and longer != other


@each_reward
@pytest.mark.parametrize("size", [(1, 1), (1, 150), (150, 1), (2, 3)])
def test_tiny_and_thin_pictures_have_scores(load, name, size):
    assert load(name).score(torch.rand(1, *size, 3), ["cat"]).valid.all()


@each_reward
def test_pictures_that_are_all_edge_and_wrong_lengths_are_refused(load, name):
    reward = load(name)
    with pytest.raises(ValueError, match="1000 x 2 pixels"):
        reward.score(torch.rand(1, 2, 1000, 3), ["cat"])
    with pytest.raises(ValueError, match="3 images need 3 prompts, got 2"):
        reward.score(IMAGES, ["a", "b"])


# Records and files


def test_fingerprints_tell_what_scores_depend_on(load, world):
    seen = {}
    for name, settings in (
        ("clipscore", {}),
        ("clipscore", {"convention": "paper"}),
        ("clipscore", {"dtype": "bfloat16"}),
        ("pickscore", {}),
        ("hpsv2", {}),
        ("hpsv2", {"scale": 100.0}),
        ("hpsv2", {"version": "2.0"}),
    ):
        prints = load(name, **settings).fingerprint
        assert str(world[0]) not in str(prints)
        assert len(str(prints["weights"])) == len(str(prints["tokenizer"])) == 64
        seen[str(prints)] = name
    assert len(seen) == 7
    assert load(device="cpu").fingerprint == load(batch_size=3).fingerprint


def test_a_network_reward_shows_its_network_in_the_type_asked_for(load):
    reward = load()
    assert isinstance(reward, NetworkReward)
    assert {p.dtype for p in reward.network.parameters()} == {torch.float32}
    assert {p.dtype for p in load(dtype="float16").network.parameters()} == {torch.float16}
    assert not any(p.requires_grad for p in reward.network.parameters())


def test_halves_change_a_score_in_the_third_digit_only(load):
    whole = load("clipscore").score(IMAGES, PROMPTS).values
    half = load("clipscore", dtype="bfloat16").score(IMAGES, PROMPTS)
    assert half.values.dtype == torch.float32
    torch.testing.assert_close(half.values, whole, rtol=0, atol=2e-2)


def test_the_tokenizer_beside_the_weights_wins(load, world, tmp_path):
    folder, _, network = world
    write_clip(tmp_path, network)
    write_clip_tokenizer(tmp_path)
    reward = load(path=tmp_path, tokenizers=[tmp_path / "none"])
    assert torch.equal(reward.score(IMAGES, PROMPTS).values, load().score(IMAGES, PROMPTS).values)
    with pytest.raises(FileNotFoundError, match="CLIP's tokenizer was not found"):
        load(path=folder / "pickscore", tokenizers=[])


def test_a_tokenizer_of_another_size_is_refused(load, world, tmp_path, monkeypatch):
    _, shape, _ = world
    larger = clip_shape(shape.vocabulary + 8)
    monkeypatch.setattr(pickscore, "CLIP_H", larger)
    write_clip(tmp_path, reference_clip(larger))
    with pytest.raises(ValueError, match="the network of pickscore needs"):
        load(path=tmp_path)


def test_the_file_of_another_model_is_refused(load, world, monkeypatch, tmp_path):
    write_clip(tmp_path, reference_clip(clip_shape(300)))
    with pytest.raises(ValueError, match="token_embedding.weight has shape"):
        load(path=tmp_path)
