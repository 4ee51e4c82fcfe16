"""The tiny FLUX: packing, asset, sampling and one step of its training script."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from environment import package

from chunk_grpo_core.models.flux.policy import (
    image_ids,
    pack_latents,
    predict_velocity,
    unpack_latents,
)
from chunk_grpo_core.models.tiny.evaluate import save_sheet
from chunk_grpo_core.models.tiny.model import (
    ASSET,
    LATENT_SHAPE,
    TinyFlux,
    initialise,
    load_tiny_flux,
    sample_images,
    save_tiny_flux,
)
from chunk_grpo_core.models.tiny.pretrain import pretrain
from chunk_grpo_core.models.tiny.pretrain_codec import CodecSettings
from chunk_grpo_core.models.tiny.pretrain_transformer import TransformerSettings, mislabel
from chunk_grpo_core.models.tiny.reward import TinyWorldReward
from chunk_grpo_core.models.tiny.world import HELD_OUT, TRAIN, caption, indices_of

package("diffusers")


@pytest.fixture(scope="module")
def flux() -> TinyFlux:
    return load_tiny_flux()


def test_packing_is_that_of_diffusers() -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(2, 16, 8, 6)
    tokens = pack_latents(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 16, 8, 6))
    assert torch.equal(unpack_latents(tokens, 8, 6), latents)
    ids = FluxPipeline._prepare_latent_image_ids(1, 4, 3, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids(8, 6), ids)


def test_packing_refuses_odd_sizes() -> None:
    with pytest.raises(ValueError, match="even"):
        pack_latents(torch.randn(1, 16, 7, 8))
    with pytest.raises(ValueError, match="do not fill"):
        unpack_latents(torch.randn(1, 16, 64), 8, 6)


def test_packing_without_einops_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "einops", None)
    with pytest.raises(ImportError, match=r"To pack latents.*'einops'.*chunk-grpo-core\[train\]"):
        pack_latents(torch.randn(1, 16, 8, 8))


def test_loaded_model_is_frozen_float32_and_rounded_to_bf16(flux: TinyFlux) -> None:
    for part in flux.parts().values():
        assert not part.training
        for parameter in part.parameters():
            assert parameter.dtype == torch.float32 and not parameter.requires_grad
    weight = flux.transformer.x_embedder.weight
    assert torch.equal(weight, weight.bfloat16().float())
    assert 2e6 <= sum(p.numel() for p in flux.transformer.parameters()) <= 3.25e6


def test_velocity_reacts_to_time_and_text(flux: TinyFlux) -> None:
    x = torch.randn(2, *LATENT_SHAPE)
    features, pooled = flux.text.encode([caption(s) for s in HELD_OUT[:2]])
    out = predict_velocity(flux.transformer, x, torch.full((2,), 0.9), features, pooled)
    assert out.shape == x.shape
    later = predict_velocity(flux.transformer, x, torch.full((2,), 0.2), features, pooled)
    other = predict_velocity(
        flux.transformer, x, torch.full((2,), 0.9), features.flip(0), pooled.flip(0)
    )
    assert (out - later).abs().max() > 0.1 and (out - other).abs().max() > 0.1


@pytest.mark.slow
def test_base_model_draws_well_but_has_headroom(flux: TinyFlux) -> None:
    captions = [caption(scene) for scene in HELD_OUT]
    batch = TinyWorldReward().score(sample_images(flux, captions, seed=1), captions)
    assert 0.55 <= float(batch.extras["attributes"].mean()) <= 0.8
    assert float(batch.extras["strict"].mean()) < 0.4


def test_sampling_is_seeded_and_takes_empty_text(flux: TinyFlux) -> None:
    captions = ["", caption(HELD_OUT[0])]
    first = sample_images(flux, captions, seed=3, steps=2)
    assert first.shape == (2, 64, 64, 3)
    assert torch.equal(first, sample_images(flux, captions, seed=3, steps=2))
    assert not torch.equal(first, sample_images(flux, captions, seed=4, steps=2))


def test_initialise_is_seeded_and_starts_at_zero_velocity() -> None:
    one, two = initialise(5), initialise(5)
    x = torch.randn(1, *LATENT_SHAPE)
    out = predict_velocity(one.transformer, x, torch.ones(1), *one.text.encode([""]))
    assert not out.any()
    for part, twin in zip(one.parts().values(), two.parts().values(), strict=True):
        for a, b in zip(part.parameters(), twin.parameters(), strict=True):
            assert torch.equal(a, b) and a.requires_grad


def test_save_and_load_round_trip(flux: TinyFlux, tmp_path: Path) -> None:
    path = tmp_path / "copy.safetensors"
    save_tiny_flux(flux, path, {"seed": "0"})
    again = load_tiny_flux(path)
    for part, twin in zip(flux.parts().values(), again.parts().values(), strict=True):
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, twin.state_dict()[name]), name


def test_missing_and_damaged_files_are_clear(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pretrain"):
        load_tiny_flux(tmp_path / "none.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(ASSET.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="not a readable"):
        load_tiny_flux(damaged)


def test_mislabel_changes_attributes_but_never_leaves_the_training_split() -> None:
    rows = indices_of(TRAIN).repeat(10, 1)
    wrong = mislabel(rows, 0.35, torch.Generator().manual_seed(0))
    assert set(map(tuple, wrong.tolist())) <= set(map(tuple, rows.tolist()))
    assert 0.2 < float((wrong != rows).float().mean()) < 0.36
    assert torch.equal(mislabel(rows, 0.0, torch.Generator()), rows)


@pytest.mark.slow
def test_pretrain_script_writes_a_loadable_asset(tmp_path: Path) -> None:
    codec = CodecSettings(steps=2, batch=4)
    small = TransformerSettings(steps=2, batch=4, pictures=64, report_every=5)
    facts = pretrain(tmp_path, 0, codec, small, seeds=(1,))
    load_tiny_flux(tmp_path / "tiny_flux.safetensors")
    assert (tmp_path / "pretrain_report.json").is_file() and (tmp_path / "samples.png").is_file()
    assert set(facts["history"]) == {2} and 0 <= facts["evaluation"]["reward"] <= 1


def test_sheet_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    save_sheet(torch.rand(5, 64, 64, 3), 3, tmp_path / "sheet.png", zoom=1)
    assert Image.open(tmp_path / "sheet.png").size == (3 * 66 + 2, 2 * 66 + 2)
