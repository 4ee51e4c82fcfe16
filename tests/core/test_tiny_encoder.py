"""The picture encoder of the tiny world."""

from __future__ import annotations

import pytest
import torch

from chunk_grpo_core.models.tiny.encoder import DIMS, load_tiny_encoder
from chunk_grpo_core.models.tiny.pretrain_encoder import faulty_pictures, named_right, train_encoder
from chunk_grpo_core.models.tiny.world import ATTRIBUTES, HELD_OUT, indices_of


def test_it_names_what_unseen_scenes_show_also_in_faulty_pictures():
    network = load_tiny_encoder().network
    for amount, least in ((0.0, 0.97), (1.0, 0.9)):
        shares = dict(zip(ATTRIBUTES, named_right(network, amount), strict=True))
        assert shares.pop("shape") > 0.5  # of four
        assert min(shares.values()) > least, shares


def test_it_embeds_a_picture_alike_in_any_company_and_size():
    encoder = load_tiny_encoder()
    dice = torch.Generator().manual_seed(0)
    images = faulty_pictures(indices_of(HELD_OUT[:5]), dice).movedim(1, -1)
    embedded = encoder.embed(images)
    assert embedded.shape == (5, encoder.dims) == (5, DIMS) and embedded.dtype == torch.float32
    assert torch.equal(encoder.embed(images[3:4]), embedded[3:4])
    large = images.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert float((encoder.embed(large) - embedded).abs().mean()) < 0.1 * float(embedded.std())
    assert encoder.embed(images[:0]).shape == (0, DIMS)


def test_the_script_that_trains_it_gives_the_same_weights_twice():
    first, again = (train_encoder(2, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_its_digest_is_that_of_its_weights(tmp_path):
    encoder, other = load_tiny_encoder(), load_tiny_encoder()
    assert encoder.digest == other.digest
    changed = load_tiny_encoder()
    changed.network.mix.bias[0] += 1e-3
    assert changed.digest != encoder.digest
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"broken.safetensors is no readable encoder"):
        load_tiny_encoder(tmp_path / "broken.safetensors")
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_tiny_encoder(tmp_path / "none.safetensors")
