"""Fit Taste and its CLIP_VISION inside ComfyUI: encoders, heads, refusals, what is run again."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 3,
          "intermediate_size": 32, "image_size": 16, "patch_size": 8, "hidden_act": "gelu",
          "layer_norm_eps": 1e-6, "use_swiglu_ffn": False}  # fmt: skip
FAMILIES = {
    "clip": {"model_type": "clip_vision_model", "projection_dim": 12},
    "siglip": {
        "model_type": "siglip_vision_model",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    },
    "dinov2": {"model_type": "dinov2", "image_size": 518},  # ComfyUI knows no other size
}


def clip_vision(folder, family="clip", seed=0):
    """A CLIP_VISION of ComfyUI's own class, tiny and random."""
    import comfy.clip_vision

    file = folder / f"{family}.json"
    file.write_text(json.dumps({**VISION, **FAMILIES[family]}))
    model = comfy.clip_vision.ClipVisionModel(str(file))
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=dice))
    return model


@pytest.fixture
def tastes(lab):
    bridge = lab.module("nodes.bridge.taste_heads")
    shutil.rmtree(bridge.tastes_folder(), ignore_errors=True)
    yield bridge
    shutil.rmtree(bridge.tastes_folder(), ignore_errors=True)


def bright_picks(lab, taste, count=24, start=0):
    """Duels that the brighter picture wins."""
    new_pick = lab.module("chunk_grpo_core.rewards.taste.events").new_pick
    dice = torch.Generator().manual_seed(start)
    for number in range(start, start + count):
        pair = [level + 0.3 * torch.rand(16, 16, 3, generator=dice) for level in (0.1, 0.6)]
        shown = [taste.keep(one, prompt=f"prompt {number}", index=i) for i, one in enumerate(pair)]
        taste.append(new_pick("duel", shown, 1))


def fit(lab, name="mine", encoder="clip_vision", at_least=20, vision=None):
    node = lab.module("nodes.fit_taste").FitTaste
    return node.execute(name, encoder, at_least, 0.0, False, vision).result


@pytest.mark.parametrize("family", list(FAMILIES))
def test_clip_vision_embeds_every_picture_on_its_own(lab, family, tmp_path):
    encoder = lab.module("nodes.bridge.taste_encoder").ClipVisionEncoder(
        clip_vision(tmp_path, family)
    )
    images = torch.rand(18 if family == "clip" else 4, 20, 31, 3)
    embedded = encoder.embed(images)  # outside inference mode, as in a training
    count = len(images)
    assert embedded.shape == (count, encoder.dims) == (count, 12 if family == "clip" else 16)
    assert embedded.dtype == torch.float32 and not embedded.is_inference()
    assert torch.allclose(encoder.embed(images[3:4]), embedded[3:4], atol=1e-5)
    assert embedded.std(0).min() > 0 and encoder.embed(images[:0]).shape == (0, encoder.dims)


def test_the_digest_of_a_clip_vision_is_that_of_its_weights_and_preparation(lab, tmp_path):
    made = lab.module("nodes.bridge.taste_encoder").ClipVisionEncoder
    first = made(clip_vision(tmp_path)).digest
    assert made(clip_vision(tmp_path)).digest == first
    assert made(clip_vision(tmp_path, seed=1)).digest != first
    other = clip_vision(tmp_path)
    other.image_mean = [0.4, 0.5, 0.5]
    assert made(other).digest != first


def test_encoding_can_be_cancelled(lab, tmp_path):
    import comfy.model_management as memory

    encoder = lab.module("nodes.bridge.taste_encoder").ClipVisionEncoder(clip_vision(tmp_path))
    memory.interrupt_current_processing()
    with pytest.raises(memory.InterruptProcessingException):
        encoder.embed(torch.rand(2, 16, 16, 3))


@pytest.mark.parametrize("kind", ["statistics", "tiny", "clip"])
def test_a_fitted_taste_scores_and_is_found_again_by_load_reward(lab, tastes, tmp_path, kind):
    bright_picks(lab, tastes.named_taste("mine"))
    vision = clip_vision(tmp_path) if kind == "clip" else None
    encoder = "tiny" if kind == "tiny" else "clip_vision"
    with torch.inference_mode():
        reward, words, picture, file = fit(lab, encoder=encoder, vision=vision)
    images = torch.linspace(0.1, 0.9, 5)[:, None, None, None].expand(5, 16, 16, 3)
    values = reward.score(images, ["x"] * 5).values  # as in a training
    assert not values.is_inference() and float(values[-1]) > float(values[0])
    assert words.startswith("24 picks: it agrees with 24 of your 24 clicks")
    assert picture.ndim == 4 and file == "mine/mine.safetensors"
    assert (tastes.tastes_folder() / file).is_file()
    load = lab.module("nodes.load_reward").LoadReward
    for name in ("mine", file):
        again = load.execute("taste", "#2060c0", file=name, clip_vision=vision).result[0]
        assert torch.equal(again.score(images, ["x"] * 5).values, values)
        assert dict(again.fingerprint) == dict(reward.fingerprint)
    assert bool(reward.fingerprint.get("encoder")) == (kind != "statistics")


def test_a_head_asks_for_the_model_that_it_was_fitted_on(lab, tastes, tmp_path):
    bright_picks(lab, tastes.named_taste("mine"))
    fit(lab, vision=clip_vision(tmp_path))
    load = lab.module("nodes.load_reward").LoadReward
    with pytest.raises(ValueError, match="connect it to clip_vision, or use Fit Taste"):
        load.execute("taste", "#2060c0", file="mine")
    with pytest.raises(ValueError, match="and encoder names CLIPVisionModelProjection"):
        other = clip_vision(tmp_path, seed=1)
        load.execute("taste", "#2060c0", file="mine", clip_vision=other)
    fit(lab)
    with pytest.raises(ValueError, match="fitted without an encoder; .* clip_vision"):
        load.execute("taste", "#2060c0", file="mine", clip_vision=clip_vision(tmp_path))
    with pytest.raises(ValueError, match="^reward taste: pessimism is -1; it must be 0 or above"):
        load.execute("taste", "#2060c0", "pessimism=-1", file="mine")


def test_more_picks_run_fit_taste_and_load_reward_again(lab, tastes):
    node, load = lab.module("nodes.fit_taste").FitTaste, lab.module("nodes.load_reward").LoadReward
    taste = tastes.named_taste("mine")
    bright_picks(lab, taste)
    bright_picks(lab, tastes.named_taste("other"), 2)

    def states():
        return [node.fingerprint_inputs("mine"), node.fingerprint_inputs(None),
                node.fingerprint_inputs("other")]  # fmt: skip

    before, loaded = states(), load.fingerprint_inputs("taste", "mine")
    assert states() == before
    bright_picks(lab, taste, 1, 100)
    assert [a == b for a, b in zip(states(), before, strict=True)] == [False, False, True]
    first = fit(lab)[0].fingerprint
    assert load.fingerprint_inputs("taste", "mine") != loaded
    bright_picks(lab, taste, 1, 200)
    assert fit(lab)[0].fingerprint["head"] != first["head"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("none", {}, ["no picks of 'none'", "there are: mine", "Pick Pictures"]),
        ("mine", {"at_least": 40}, ["mine has 24 clicks", "asks for 40; pick 16 more"]),
        ("../mine", {}, ["cannot be a file name"]),
        ("mine", {"encoder": "big"}, ["encoder is 'big'", "clip_vision, tiny"]),
        ("mine", {"encoder": "tiny", "vision": object()}, ["encoder is tiny", "connection"]),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_plain_words(lab, tastes, name, options, words):
    bright_picks(lab, tastes.named_taste("mine"))
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        fit(lab, name, **options)
    assert [word for word in words if word not in str(error.value)] == []
    assert not (tastes.tastes_folder() / "mine" / "mine.safetensors").exists()


def test_the_taste_that_comes_with_the_pack_is_understood(lab, tastes):
    reward, words, _, _ = fit(lab, "example", "tiny")
    assert "Better than chance." in words and words.startswith("64 picks")
    greys = torch.full((1, 64, 64, 3), 0.5)
    vivid = torch.tensor([0.86, 0.16, 0.16]).expand(1, 64, 64, 3)
    values = reward.score(
        torch.cat([greys, vivid]), ["a small red circle on a blue background"] * 2
    )
    assert float(values.values[1]) > float(values.values[0])
