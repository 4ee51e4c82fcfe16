"""The latent codec: shapes, constants, and that pictures survive it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chunk_grpo_core.models.tiny.codec import TinyCodec
from chunk_grpo_core.models.tiny.model import load_tiny_flux
from chunk_grpo_core.models.tiny.render import render
from chunk_grpo_core.models.tiny.world import SCENES


@pytest.fixture(scope="module")
def codec() -> TinyCodec:
    return load_tiny_flux().codec


def test_size_is_small() -> None:
    assert sum(p.numel() for p in TinyCodec().parameters()) <= 400_000


def test_shapes_also_for_other_picture_sizes() -> None:
    codec = TinyCodec()
    latents = codec.encode(torch.rand(2, 64, 128, 3))
    assert latents.shape == (2, 16, 8, 16)
    images = codec.decode(latents)
    assert images.shape == (2, 64, 128, 3)
    assert 0 <= float(images.detach().min()) and float(images.detach().max()) <= 1


def test_wrong_shapes_are_refused() -> None:
    codec = TinyCodec()
    with pytest.raises(ValueError, match="multiples of 8"):
        codec.encode(torch.rand(1, 60, 64, 3))
    with pytest.raises(ValueError, match="B, H, W, 3"):
        codec.encode(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="16, h, w"):
        codec.decode(torch.rand(1, 4, 8, 8))


def test_nchw_and_nhwc_agree(codec: TinyCodec) -> None:
    images = render(SCENES[::100], 5)
    latents = codec.encode(images)
    assert torch.equal(latents, codec.encode_nchw(images.movedim(-1, 1) * 2 - 1))
    plain = (codec.decode_nchw(latents) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert torch.equal(codec.decode(latents), plain)


def test_latents_are_normalised(codec: TinyCodec) -> None:
    latents = codec.encode(render(SCENES, 7))
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.1
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.1


def test_round_trip_is_close(codec: TinyCodec) -> None:
    images = render(SCENES, 8)
    error = (codec.decode(codec.encode(images)) - images).abs()
    assert float(error.mean()) < 0.01
    assert float((error.amax(-1) > 0.25).float().mean()) < 0.01


def test_small_latent_noise_is_harmless(codec: TinyCodec) -> None:
    images = render(SCENES[::10], 9)
    latents = codec.encode(images)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    error = (codec.decode(latents + 0.1 * noise) - images).abs()
    assert float(error.mean()) < 0.02


def test_asset_is_small() -> None:
    from chunk_grpo_core.models.tiny.model import ASSET

    assert isinstance(ASSET, Path) and ASSET.stat().st_size <= 8 * 2**20
