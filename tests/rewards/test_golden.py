"""Networks against numbers of the official code, on tiny checkpoints in the official layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from chunk_grpo_core.rewards.files import read_weights
from chunk_grpo_core.rewards.networks import clip, imagereward
from chunk_grpo_core.rewards.networks.clip import ClipShape, clip_network, text_features
from chunk_grpo_core.rewards.networks.imagereward import BlipShape, blip_network, blip_scores

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "rewards"
HPSV2 = ClipShape(
    text=(64, 2, 4), vision=(160, 2, 2), features=64, activation="gelu", vocabulary=500, image=28
)
BLIP = BlipShape(
    vision=(64, 2, 4, 256), text=(48, 2, 4, 96), image=32, patch=16, vocabulary=120, positions=64
)


def read(name):
    return read_weights(GOLDEN / f"{name}.safetensors")


@pytest.fixture
def prepared(monkeypatch):
    """Let the golden pixels through: they are preprocessed already."""
    for module in (clip, imagereward):
        monkeypatch.setattr(module, "normalised", lambda picture: picture)


def test_hpsv2_gives_the_features_and_scores_of_open_clip(prepared):
    numbers = read("hpsv2_io")
    network = clip_network(HPSV2, read("hpsv2_weights"), "golden")
    seen = clip.image_features(network, numbers["pixel_values"], lambda picture, size: picture)
    words = text_features(network, numbers["input_ids"])
    for found, name in ((seen, "image_features"), (words, "text_features")):
        expected = functional.normalize(numbers[name], dim=-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close((seen * words).sum(-1), numbers["score"], rtol=0, atol=1e-5)


def test_what_follows_the_end_of_a_prompt_does_not_count():
    numbers = read("hpsv2_io")
    network = clip_network(HPSV2, read("hpsv2_weights"), "golden")
    ids = numbers["input_ids"]  # padded with 0 there; with the end token in transformers
    padded = torch.where(ids == 0, 499, ids)
    assert not torch.equal(ids, padded)
    torch.testing.assert_close(
        text_features(network, padded), text_features(network, ids), rtol=0, atol=1e-6
    )


def test_imagereward_gives_the_scores_of_the_official_code():
    numbers = read("imagereward_io")
    network = blip_network(BLIP, read("imagereward_weights"), "golden")
    found = blip_scores(network, numbers["x"], numbers["ids"], numbers["am"])
    # The golden score is the official one: after mean and spread of their test set.
    torch.testing.assert_close(found, numbers["r"][:, 0], rtol=0, atol=1e-5)


def test_the_mask_of_a_prompt_hides_its_padding():
    numbers = read("imagereward_io")
    network = blip_network(BLIP, read("imagereward_weights"), "golden")
    ids = torch.where(numbers["am"] == 1, numbers["ids"], 7)
    assert not torch.equal(ids, numbers["ids"])
    found = blip_scores(network, numbers["x"], ids, numbers["am"])
    torch.testing.assert_close(found, numbers["r"][:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "shape", "name", "dropped"),
    [
        (clip_network, HPSV2, "hpsv2_weights", "visual.ln_post.bias"),
        (blip_network, BLIP, "imagereward_weights", "blip.visual_encoder.norm.bias"),
        (blip_network, BLIP, "imagereward_weights", "mlp.layers.7.bias"),
    ],
)
def test_checkpoints_must_be_complete_and_hold_nothing_else(build, shape, name, dropped):
    tensors = read(name)
    with pytest.raises(ValueError, match="ck.pt does not fit"):
        build(shape, {k: t for k, t in tensors.items() if k != dropped}, "ck.pt")
    for extra in ("visual.surprise.weight", "mlp.layers.9.bias", "module.logit_scale"):
        with pytest.raises(ValueError, match="surprise|layers.9|module.logit_scale"):
            build(shape, {**tensors, extra: torch.ones(1)}, "ck.pt")
