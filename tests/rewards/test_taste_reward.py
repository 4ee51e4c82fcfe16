"""A taste as a reward, with and without an encoder of transformers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from small_runs import TINY

from chunk_grpo_core.configfile.reading import read_config_file
from chunk_grpo_core.method.reward import is_groupwise
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.networks.network import NetworkReward
from chunk_grpo_core.rewards.taste.encoders import load_encoder, named_encoder
from chunk_grpo_core.rewards.taste.events import new_pick
from chunk_grpo_core.rewards.taste.features import features_shown
from chunk_grpo_core.rewards.taste.fit import fit_taste
from chunk_grpo_core.rewards.taste.head import load_head, save_head
from chunk_grpo_core.rewards.taste.picks import Taste
from chunk_grpo_core.runs.start import resume, train

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32, "image_size": 16, "patch_size": 8}  # fmt: skip
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "vocab_size": 50}  # fmt: skip


def write_encoder(folder, family="siglip", seed=0):
    import transformers

    torch.manual_seed(seed)
    if family == "siglip":
        config = transformers.SiglipConfig(text_config=TEXT, vision_config=TOWER)
        model = transformers.SiglipModel(config)
    elif family == "clip":
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=TOWER)
        model = transformers.CLIPModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**TOWER))
    model.save_pretrained(folder)
    facts = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A taste for bright pictures, an encoder, and heads with and without it."""
    folder = tmp_path_factory.mktemp("taste")
    taste = Taste(folder / "bright")
    dice = torch.Generator().manual_seed(0)
    for number in range(24):
        pair = [level + 0.3 * torch.rand(9, 12, 3, generator=dice) for level in (0.1, 0.6)]
        shown = [taste.keep(one, prompt=f"prompt {number}", index=i) for i, one in enumerate(pair)]
        taste.append(new_pick("duel", shown, 1))
    encoder = load_encoder(write_encoder(folder / "siglip"))
    save_head(fit_taste(taste).head, folder / "plain.safetensors")
    save_head(fit_taste(taste, encoder).head, folder / "encoded.safetensors")
    return folder


def pictures():
    dice = torch.Generator().manual_seed(9)
    levels = torch.linspace(0, 0.7, 7)[:, None, None, None]
    return levels + 0.3 * torch.rand(7, 10, 8, 3, generator=dice)


@pytest.mark.parametrize("name", ["plain", "encoded"])
def test_it_scores_what_its_owner_likes_higher_whatever_stands_beside_it(place, name):
    settings = {"encoder": place / "siglip"} if name == "encoded" else {}
    reward = load_reward("taste", head=place / f"{name}.safetensors", **settings)
    images = pictures()
    batch = reward.score(images, ["x"] * 7)
    assert float(batch.values[-1]) > 0.5 > -0.5 > float(batch.values[0])
    assert set(batch.details) == {"taste_std", "unfamiliar"} and not is_groupwise(reward)
    order = [3, 0, 6]
    some = reward.score(images[order], [Example("x")] * 3)
    assert torch.allclose(some.values, batch.values[order], atol=1e-5)
    assert isinstance(reward, NetworkReward) == (name == "encoded")
    assert reward.fingerprint["pessimism"] == 0 and len(str(reward.fingerprint["head"])) == 64


def test_without_an_encoder_the_batch_changes_no_bit_and_broken_pictures_are_masked(place):
    reward = load_reward("taste", head=place / "plain.safetensors", batch_size=2)
    images = pictures()
    alone = torch.cat([reward.score(one[None], ["x"]).values for one in images])
    assert torch.equal(reward.score(images, ["x"] * 7).values, alone)
    images[2, 0, 0, 0] = math.nan
    batch = reward.score(images, ["x"] * 7)
    assert batch.valid.tolist() == [i != 2 for i in range(7)]
    assert torch.equal(batch.values[batch.valid], alone[batch.valid])
    assert reward.score(images[:0], []).values.shape == (0,)


def test_pessimism_takes_away_what_the_ensemble_is_not_sure_of(place):
    settings = {"head": place / "plain.safetensors"}
    sure, careful = (load_reward("taste", **settings, pessimism=k) for k in (0.5, 2.0))
    low, high = (reward.score(pictures(), ["x"] * 7) for reward in (careful, sure))
    assert torch.allclose(high.values - low.values, 1.5 * high.extras["taste_std"], atol=1e-5)
    assert sure.fingerprint != careful.fingerprint
    with pytest.raises(ValueError, match="pessimism is -1.0; it must be 0 or above"):
        load_reward("taste", **settings, pessimism=-1.0)


def test_pictures_unlike_all_that_were_shown_are_told(place):
    reward = load_reward("taste", head=place / "plain.safetensors")
    like = reward.score(pictures(), ["x"] * 7).extras["unfamiliar"]
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    strange = reward.score(checks[None, ..., None].expand(1, 32, 32, 3).float(), ["x"])
    assert float(like.median()) < 3 and float(strange.extras["unfamiliar"]) > 2 * float(like.max())


def test_distance_takes_away_what_is_unlike_all_that_was_shown_and_nothing_else(place):
    settings = {"head": place / "plain.safetensors"}
    free, near = (load_reward("taste", **settings, distance=k) for k in (0.0, 0.5))
    for reward in (free, near):  # as if the pictures that were shown had differed more
        wider = replace(reward.head.scaling, factor=reward.head.scaling.factor / 2)
        reward.head = replace(reward.head, scaling=wider)
    images = pictures()
    rows, columns = (torch.arange(size) for size in images.shape[1:3])
    images[-1] = ((rows[:, None] + columns) % 2)[..., None]  # a chessboard
    before, after = (reward.score(images, ["x"] * 7) for reward in (free, near))
    beyond = (before.extras["unfamiliar"] - 1).clamp(min=0)
    assert (beyond == 0).any() and beyond[-1] == beyond.max() > 1
    assert torch.allclose(before.values - after.values, 0.5 * beyond, atol=1e-5)
    assert torch.equal(before.values[beyond == 0], after.values[beyond == 0])
    assert free.fingerprint != near.fingerprint
    with pytest.raises(ValueError, match="distance is -0.5; it must be 0 or above"):
        load_reward("taste", **settings, distance=-0.5)


@pytest.mark.parametrize("family", ["siglip", "clip", "dinov2"])
def test_image_towers_of_transformers_embed_each_picture_on_its_own(family, tmp_path):
    encoder = load_encoder(write_encoder(tmp_path / family, family), batch_size=2)
    images = torch.rand(5, 20, 31, 3)
    embedded = encoder.embed(images)
    assert embedded.shape == (5, encoder.dims) == (5, 16) and embedded.dtype == torch.float32
    assert torch.allclose(encoder.embed(images[3:4]), embedded[3:4], atol=1e-5)
    assert embedded.std(0).min() > 0 and encoder.name == family
    assert not any("text" in name for name, _ in encoder.network.named_parameters())


def test_a_missing_and_another_encoder_are_refused_by_name(place, tmp_path):
    with pytest.raises(ValueError, match=r"fitted on the encoder siglip \(digest .*; name its"):
        load_reward("taste", head=place / "encoded.safetensors")
    other = write_encoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"the encoder siglip .* encoder names other"):
        load_reward("taste", head=place / "encoded.safetensors", encoder=other)
    with pytest.raises(ValueError, match="fitted without an encoder; leave encoder out"):
        load_reward("taste", head=place / "plain.safetensors", encoder=other)
    with pytest.raises(ValueError, match="the reward taste needs the setting head"):
        load_reward("taste")


def test_a_head_on_the_tiny_encoder_needs_no_file(place, tmp_path):
    fitted = fit_taste(Taste(place / "bright"), named_encoder("tiny"))
    assert fitted.report.encoder == "tiny" and len(fitted.head.scaling.mean) == 117 + 64
    save_head(fitted.head, tmp_path / "tiny.safetensors")
    reward = load_reward("taste", head=tmp_path / "tiny.safetensors")
    values = reward.score(pictures(), ["x"] * 7).values
    assert float(values[-1]) > float(values[0])
    assert reward.fingerprint["encoder"] == named_encoder("tiny").digest
    newer = replace(fitted.head, encoder_digest="0" * 64)
    save_head(newer, tmp_path / "newer.safetensors")
    with pytest.raises(ValueError, match=r"fitted on the encoder tiny \(digest 000000000000\)"):
        load_reward("taste", head=tmp_path / "newer.safetensors")


def test_the_digest_of_an_encoder_is_that_of_weights_preparation_and_type(tmp_path):
    folder = write_encoder(tmp_path / "a")
    first = load_encoder(folder).digest
    assert load_encoder(write_encoder(tmp_path / "b")).digest == first
    assert load_encoder(folder, dtype=torch.bfloat16).digest != first
    facts = {"image_mean": [0.4, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    assert load_encoder(folder).digest != first


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("preprocessor_config.json", None, "there is no .*preprocessor_config.json"),
        ("preprocessor_config.json", "[", "is not JSON"),
        ("preprocessor_config.json", "{}", "image_mean in .* is None; it must be three"),
        ("config.json", "{}", "no model that transformers can load"),
        ("model.safetensors", None, "holds no .safetensors file"),
        ("model.safetensors", "x", "no model that transformers can load"),
    ],
)
def test_a_folder_that_is_no_encoder_is_refused_by_name(tmp_path, name, text, words):
    folder = write_encoder(tmp_path / "a")
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        load_encoder(folder)
    assert str(error.value).startswith("encoder: ") and len(str(error.value)) < 700
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_encoder(tmp_path / "none")


def test_pictures_are_read_and_encoded_once(place, monkeypatch):
    taste = Taste(place / "bright")
    pictures = [shown for pick in taste.counting() for shown in pick.shown]
    first = features_shown(taste, pictures, None)
    monkeypatch.setattr(Taste, "picture", lambda *args: pytest.fail("read again"))
    again = features_shown(taste, pictures, None)
    assert all(torch.equal(first[name], row) for name, row in again.items()) and len(first) == 48


def test_paths_of_a_configuration_file_are_relative_to_it(place, tmp_path):
    (tmp_path / "run.toml").write_text(
        'iterations = 1\n[model]\ntype = "tiny"\n[prompts]\nfile = "p.txt"\n[reward]\n'
        'name = "taste"\nhead = "h.safetensors"\nencoder = "siglip"\n'
        '[grid]\nsteps = 3\nshift = 1.0\n[plan]\nchunks = "step"\n'
    )
    (tmp_path / "p.txt").write_text("a small red circle on a blue background\n" * 2)
    settings = read_config_file(tmp_path / "run.toml").rewards[0].settings
    assert settings["head"] == str(tmp_path / "h.safetensors")
    assert settings["encoder"] == str(tmp_path / "siglip")


def test_the_head_says_what_it_was_fitted_on(place):
    head = load_head(place / "encoded.safetensors")
    assert head.encoder == "siglip" and head.report and head.report["encoder"] == "siglip"
    assert head.report["words"].startswith("24 picks: it agrees with 24 of your 24 clicks")


@pytest.mark.slow
def test_a_run_trains_on_taste_and_prompt_together_and_goes_on_with_the_same_head_alone(
    place, tmp_path
):
    text = f"""iterations = 1
{TINY}
[[reward]]
name = "taste"
head = "{place / "plain.safetensors"}"
[[reward]]
name = "tiny_world"
weight = 2.0
"""
    (tmp_path / "run.toml").write_text(text)
    train(read_config_file(tmp_path / "run.toml"), tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert set(row["rewards"]) == {"taste", "tiny_world"}
    assert {"taste_std", "unfamiliar"} <= {name.rpartition("/")[2] for name in row["extras"]}
    record = tmp_path / "run" / "run.toml"
    other = record.read_text().replace("plain.safetensors", "gone.safetensors")
    record.write_text(other)
    with pytest.raises(FileNotFoundError, match="there is no head .*gone.safetensors"):
        resume(tmp_path / "run")
    fresh = replace(load_head(place / "plain.safetensors"), offsets=torch.ones(9))
    save_head(fresh, place / "gone.safetensors")
    with pytest.raises(ValueError, match="reward_fingerprint"):
        resume(tmp_path / "run", changes=["iterations=2"])


def test_damaged_picks_are_told_before_a_training_that_will_ask(place, tmp_path):
    picks = tmp_path / "bright" / "picks.jsonl"
    picks.parent.mkdir()
    picks.write_text((place / "bright" / "picks.jsonl").read_text().replace('"kind"', '"kin', 1))
    reward = load_reward("taste", head=place / "plain.safetensors", picks=picks.parent)
    with pytest.raises(ValueError, match="picks.jsonl, line 1"):
        reward.check_refits()
