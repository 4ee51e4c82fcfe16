"""Rewards of pixels alone, held against other libraries' words for the same thing."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from environment import package
from PIL import Image

from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.analytic import target_image
from chunk_grpo_core.rewards.picture_files import from_pil

NAMES = ("brightness", "saturation", "sharpness", "jpeg_compressibility", "jpeg_incompressibility")
RANGES = {
    "brightness": (0.0, 1.0),
    "saturation": (0.0, 1.0),
    "sharpness": (0.0, 16.0),
    "jpeg_compressibility": (-100.0, 0.0),
    "jpeg_incompressibility": (0.0, 100.0),
    "target_colour": (0.0, 1.0),
}


def pictures(count=3, height=12, width=10, seed=0):
    """Random pictures whose pixels are multiples of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator) / 255.0


def scores(name, images, **settings):
    batch = load_reward(name, **settings).score(images, [""] * len(images))
    assert batch.valid.all()
    return batch.values


def flat(*colour, side=16):
    return torch.tensor(colour).expand(1, side, side, 3)


def test_brightness_is_the_luma_of_pil():
    images = pictures()
    levels = (images * 255).round().to(torch.uint8).numpy()
    wanted = [np.asarray(Image.fromarray(picture).convert("L")).mean() / 255 for picture in levels]
    # PIL rounds every pixel to 8 bits.
    assert scores("brightness", images).tolist() == pytest.approx(wanted, abs=0.5 / 255)
    ends = torch.cat([flat(0.0, 0.0, 0.0), flat(1.0, 1.0, 1.0)])
    assert scores("brightness", ends).tolist() == pytest.approx([0.0, 1.0])


def test_saturation_is_that_of_colorsys():
    images = pictures()
    wanted = [
        np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in picture.view(-1, 3).tolist()])
        for picture in images
    ]
    assert scores("saturation", images).tolist() == pytest.approx(wanted, abs=1e-6)
    ends = torch.cat([flat(0.0, 0.0, 0.0), flat(0.4, 0.4, 0.4), flat(0.0, 0.2, 0.0)])
    assert scores("saturation", ends).tolist() == [0.0, 0.0, 1.0]


def test_sharpness_is_the_variance_of_scipys_laplacian():
    ndimage = package("scipy.ndimage")
    images = pictures().double()
    luma = 0.299 * images[..., 0] + 0.587 * images[..., 1] + 0.114 * images[..., 2]
    wanted = [ndimage.laplace(picture.numpy())[1:-1, 1:-1].var() for picture in luma]
    assert scores("sharpness", images.float()).tolist() == pytest.approx(wanted, rel=1e-5)


def test_sharpness_ranges_from_a_slope_to_a_chessboard():
    ramp = torch.linspace(0, 1, 18).mul(255).round().div(255)  # steps of exactly 15 levels
    slope = ramp[None, None, :, None].expand(1, 18, 18, 3)
    row, column = torch.meshgrid(torch.arange(18), torch.arange(18), indexing="ij")
    chess = ((row + column) % 2).float()[None, ..., None].expand(1, 18, 18, 3)
    assert scores("sharpness", torch.cat([slope, chess])).tolist() == pytest.approx([0.0, 16.0])
    with pytest.raises(ValueError, match="at least 3 x 3 pixels, got 9 x 2"):
        scores("sharpness", torch.zeros(1, 2, 9, 3))


def test_jpeg_size_is_that_of_the_saved_file_in_bits_per_pixel(tmp_path):
    images = torch.cat([pictures(1, 32, 48), torch.full((1, 32, 48, 3), 0.5)])
    wanted = []
    for number, picture in enumerate(images):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray((picture * 255).round().byte().numpy()).save(path, quality=80)
        wanted.append(path.stat().st_size * 8 / (32 * 48))
    found = scores("jpeg_incompressibility", images, quality=80)
    assert found.tolist() == pytest.approx(wanted)
    assert torch.equal(scores("jpeg_compressibility", images, quality=80), -found)
    assert found[0] > 2 * found[1]
    with pytest.raises(ValueError, match=r"quality is 96; it must be in 1\.\.95"):
        load_reward("jpeg_compressibility", quality=96)


def test_target_image_is_one_minus_the_mean_distance(tmp_path):
    target = pictures(1)[0]
    path = tmp_path / "target.png"
    Image.fromarray((target * 255).round().byte().numpy()).save(path)
    others = pictures(seed=1)
    images = torch.cat([target[None], others])
    wanted = [
        1.0,
        *(1.0 - float(np.abs(other.numpy() - target.numpy()).mean()) for other in others),
    ]
    assert scores("target_image", images, image=path).tolist() == pytest.approx(wanted)
    by_tensor = target_image(target)
    assert by_tensor.fingerprint == load_reward("target_image", image=path).fingerprint
    assert by_tensor.fingerprint != target_image(others[0]).fingerprint


def test_a_target_of_another_size_is_resized_but_never_stretched():
    sheet = target_image(torch.full((8, 8, 3), 0.2))
    assert sheet.score(flat(0.2, 0.2, 0.2), [""]).values.item() == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="the target has 8 x 8 pixels, the pictures have 10 x 12"):
        sheet.score(pictures(1), [""])
    with pytest.raises(ValueError, match=r"of shape \(H, W, 3\), and has shape \(8, 8\)"):
        target_image(torch.zeros(8, 8))
    with pytest.raises(FileNotFoundError):
        load_reward("target_image", image="no such file.png")


@pytest.mark.parametrize("name", RANGES)
def test_scores_stay_in_the_range_that_is_documented(name):
    extremes = torch.cat(
        [pictures(2, 16, 16), flat(0.0, 0.0, 0.0), flat(1.0, 1.0, 1.0), flat(3.0, -2.0, 0.5)]
    )
    low, high = RANGES[name]
    found = scores(name, extremes)
    assert ((found >= low) & (found <= high)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_score_depends_on_its_own_picture_alone(name):
    images = pictures(4)
    together = scores(name, images)
    alone = torch.cat([scores(name, picture[None]) for picture in images])
    assert torch.equal(together, alone)
    assert torch.equal(scores(name, images.flip(0)), together.flip(0))
    assert len(together.unique()) > 2  # files of equal size happen


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_and_the_png_made_of_it_get_the_same_score(name, tmp_path):
    image = torch.rand(1, 12, 10, 3, generator=torch.Generator().manual_seed(3))
    Image.fromarray((image[0] * 255).round().byte().numpy()).save(tmp_path / "a.png")
    saved = from_pil(Image.open(tmp_path / "a.png"))[None]
    assert torch.equal(scores(name, image), scores(name, saved))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_is_not_finite_has_no_score_and_harms_no_other(name):
    images = pictures(3)
    whole = scores(name, images)
    images[1, 2, 2, 0] = torch.nan
    batch = load_reward(name).score(images, [""] * 3)
    assert batch.valid.tolist() == [True, False, True]
    assert torch.equal(batch.values[[0, 2]], whole[[0, 2]])
