"""Preprocessing against transformers' own processors and resampling written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_rewards import pictures

from chunk_grpo_core.rewards.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    as_colour,
    cropped,
    letterboxed,
    normalised,
    to_levels,
)

# Height, width.
SIZES = {
    "square": (300, 300),
    "portrait": (400, 256),
    "landscape": (256, 400),
    "odd margin": (224, 335),
    "odd margin, portrait": (227, 224),
    "enlarged": (60, 91),
    "one pixel": (1, 1),
    "as it is": (224, 224),
    "thin": (3, 40),
}
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())


def noisy(height, width):
    generator = torch.Generator().manual_seed(height + 7 * width)
    return torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)


def cubic(x):
    """Bicubic kernel with a = -1/2, as PIL and torch's antialiased resize have it."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resampling(old, new):
    """Matrix (new, old) of an antialiased bicubic resize along one side."""
    scale = old / new
    centres = (np.arange(new)[:, None] + 0.5) * scale
    matrix = cubic((np.arange(old) + 0.5 - centres) / max(scale, 1.0))
    return matrix / matrix.sum(1, keepdims=True)


def resized(levels, new):
    """Levels (H, W, 3) -> (h, w, 3), float64, still 0..255 and not rounded."""
    for axis in (0, 1):
        if levels.shape[axis] != new[axis]:
            matrix = resampling(levels.shape[axis], new[axis])
            levels = np.moveaxis(np.tensordot(matrix, levels, (1, axis)), 0, axis)
    return levels


@sizes
def test_the_crop_with_rounding_down_is_that_of_transformers(size):
    import transformers

    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    levels = noisy(*size)
    settings = {"return_tensors": "pt", "input_data_format": "channels_last"}
    expected = kind()(Image.fromarray(levels.numpy()), **settings)["pixel_values"][0]
    found = normalised(cropped("floor")(levels, 224))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=2e-6)


@sizes
@pytest.mark.parametrize("rule", ["floor", "round"])
def test_the_crop_is_the_middle_of_the_resized_picture(rule, size):
    levels = noisy(*size)
    short = min(size)
    new = tuple(math.floor(224 * side / short) for side in size)
    half = {"floor": math.floor, "round": lambda x: int(np.rint(x))}[rule]
    top, left = (half((side - 224) / 2) for side in new)
    # PIL resizes across first and rounds to 8 bits in between, so steps of 1/255 may remain.
    across = np.rint(resized(levels.double().numpy(), (size[0], new[1]))).clip(0, 255)
    whole = np.rint(resized(across, new)).clip(0, 255)
    expected = whole[top : top + 224, left : left + 224]
    found = cropped(rule)(levels, 224).permute(1, 2, 0).double().numpy() * 255
    assert found.shape == (224, 224, 3)
    assert np.abs(found - expected).max() <= 1.001
    assert np.abs(found - expected).mean() < 0.01


@pytest.mark.parametrize(("width", "apart"), [(335, 1), (227, 1), (229, 0), (231, 1), (336, 0)])
def test_the_two_crops_are_one_pixel_apart_where_half_the_margin_is_rounded_up(width, apart):
    levels = noisy(224, width)
    floor, rounded = (cropped(rule)(levels, 224) for rule in ("floor", "round"))
    start = (width - 224) // 2 + apart
    assert torch.equal(rounded, levels[:, start : start + 224].permute(2, 0, 1) / 255)
    assert torch.equal(floor, rounded) == (apart == 0)


@sizes
def test_the_letterbox_keeps_the_whole_picture_inside_black_margins(size):
    levels = noisy(*size)
    scale = 224 / max(size)
    new = tuple(round(side * scale) for side in size)
    expected = np.zeros((224, 224, 3))
    top, left = ((224 - side) // 2 for side in new)
    whole = resized(levels.double().numpy(), new) / 255
    expected[top : top + new[0], left : left + new[1]] = whole
    found = letterboxed(levels, 224).permute(1, 2, 0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)


def test_letterbox_and_crop_are_the_same_for_squares_alone():
    square, wide = pictures(1, 96, 96), pictures(1, 96, 160)
    for picture, bound in ((square, 0.01), (wide, math.inf)):
        levels = to_levels(picture)[0]
        difference = (letterboxed(levels, 224) - cropped("floor")(levels, 224)).abs().mean()
        assert difference < bound
    assert difference > 0.1


@pytest.mark.parametrize("square", [cropped("floor"), cropped("round"), letterboxed])
@pytest.mark.parametrize("size", [(1, 201), (500, 2), (0, 5)])
def test_pictures_that_are_all_edge_are_refused(square, size):
    with pytest.raises(ValueError, match=rf"{size[1]} x {size[0]} pixels; .* at most 200 times"):
        square(torch.zeros(*size, 3, dtype=torch.uint8), 224)


def test_pictures_of_grey_and_with_opacity_become_colour():
    picture = torch.rand(2, 3, 4, 3)
    assert as_colour(picture) is picture
    assert torch.equal(as_colour(picture[..., :1])[..., 2], picture[..., 0])
    half = torch.cat([picture, torch.full((2, 3, 4, 1), 0.25)], dim=-1)
    torch.testing.assert_close(as_colour(half), picture * 0.25 + 0.75)
    opaque = torch.cat([picture, torch.ones(2, 3, 4, 1)], dim=-1)
    assert torch.equal(as_colour(opaque), picture)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.zeros(1, 2, 2, 2), r"images must have the shape .* not \(1, 2, 2, 2\)"),
        (torch.zeros(0, 2, 2, 3), r"not \(0, 2, 2, 3\)"),
        (torch.zeros(3), r"not \(3,\)"),
        (torch.full((1, 2, 2, 3), float("nan")), "images holds NaN or infinity"),
        (torch.full((1, 2, 2, 3), 117.0), "images holds values from 117 to 117; .* in 0 to 1"),
    ],
)
def test_pictures_that_are_none_are_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        as_colour(picture, "images")


def test_rounding_is_to_the_nearest_level_and_values_outside_are_cut():
    values = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 3.0]).reshape(1, 1, 2, 3)
    assert to_levels(values).flatten().tolist() == [0, 0, 0, 1, 255, 255]


def test_each_channel_has_its_own_mean_and_spread():
    found = normalised(torch.ones(2, 3, 4, 4))
    expected = (1 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(found[1, :, 2, 3].numpy(), expected, rtol=1e-6)
