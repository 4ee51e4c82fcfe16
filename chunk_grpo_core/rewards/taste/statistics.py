"""117 numbers of colours and edges: what an encoder of subjects does not see.

Every picture is first averaged to 64 x 64 pixels, so that the numbers do not depend on its size;
a picture that is not square is squeezed. All of them are plain sums: the same picture gives the
same numbers, whatever else is in the batch.

    14  mean and spread of red, green, blue, luma, blue and red against luma, and chroma
    8   how many pixels are how bright; 6: how colourful; 12: of which hue (weighted by chroma)
    48  luma, blue and red against luma in 4 x 4 fields
    9   mean, spread and 90 % quantile of the edges at 64, 32 and 16 pixels
    8   directions of the edges; 3: energy of the Laplacian at 64, 32 and 16 pixels
    2   likeness of left and right, of top and bottom
    7   colourfulness, entropy of colours, share of the commonest colour, median and range of luma,
        middle against border in luma and chroma

Legend: B pictures, H W picture size.

References:
    Measuring colourfulness in natural images (Hasler and Suesstrunk, 2003).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..pixels import to_levels

__all__ = ["COUNT", "VERSION", "statistics"]

COUNT = 117
VERSION = "colours-edges-1"
"""Of the numbers; a head is only used with those that it was fitted on."""
_SIDE = 64
_BATCH = 32


def statistics(images: Tensor) -> Tensor:
    """Numbers of pictures.

    Args:
        images: (B, H, W, 3) in 0..1; they are rounded to 8 bits.

    Returns:
        (B, 117), float32 on the CPU.
    """
    if not len(images):
        return torch.zeros(0, COUNT)
    # One by one until they are small: a sum over a batch may be rounded in another order.
    small = torch.cat([_small(picture[None]) for picture in images])
    return torch.cat([_numbers(part) for part in small.split(_BATCH)]).float()


def _small(picture: Tensor) -> Tensor:
    pixels = to_levels(picture.detach().cpu()).movedim(-1, 1).double() / 255.0
    return functional.adaptive_avg_pool2d(pixels, _SIDE)


def _numbers(rgb: Tensor) -> Tensor:
    """(B, 3, 64, 64) float64 -> (B, 117)."""
    red, green, blue = rgb.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    to_blue, to_red = blue - luma, red - luma
    chroma = rgb.amax(1) - rgb.amin(1)
    planes = torch.stack([red, green, blue, luma, to_blue, to_red, chroma], 1)
    sizes = [luma, _half(luma), _half(_half(luma))]
    edges = [_edges(plane) for plane in sizes]
    columns = [
        planes.mean((2, 3)),
        planes.std((2, 3)),
        _histogram(luma, 8),
        _histogram(chroma, 6),
        _hues(red, green, blue),
        functional.adaptive_avg_pool2d(torch.stack([luma, to_blue, to_red], 1), 4).flatten(1),
        *[_summary(strength) for strength, _ in edges],
        _directions(*edges[0]),
        torch.stack([_laplacian(plane) for plane in sizes], 1),
        torch.stack([_likeness(luma, luma.flip(2)), _likeness(luma, luma.flip(1))], 1),
        _whole_picture(rgb, luma, chroma),
    ]
    return torch.cat(columns, 1)


def _half(plane: Tensor) -> Tensor:
    return functional.avg_pool2d(plane[:, None], 2)[:, 0]


def _edges(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Strength and angle of the central differences."""
    across = (plane[:, 1:-1, 2:] - plane[:, 1:-1, :-2]) / 2
    down = (plane[:, 2:, 1:-1] - plane[:, :-2, 1:-1]) / 2
    return (across**2 + down**2).sqrt(), torch.atan2(down, across)


def _summary(values: Tensor) -> Tensor:
    flat = values.flatten(1)
    return torch.stack([flat.mean(1), flat.std(1), flat.quantile(0.9, 1)], 1)


def _histogram(plane: Tensor, bins: int) -> Tensor:
    """Shares of the pixels in ``bins`` bins of 0..1 that overlap like tents."""
    places = torch.linspace(0, 1, bins, dtype=plane.dtype)
    distance = (plane.flatten(1)[..., None] - places).abs() * (bins - 1)
    return (1 - distance).clamp(min=0).mean(1)


def _circle(angle: Tensor, weight: Tensor, bins: int, whole: float) -> Tensor:
    """The same on a circle of ``whole`` radians, weighted."""
    place = (angle % whole) / whole * bins
    distance = (place.flatten(1)[..., None] - torch.arange(bins, dtype=angle.dtype)).abs()
    tents = (1 - torch.minimum(distance, bins - distance)).clamp(min=0)
    return (tents * weight.flatten(1)[..., None]).mean(1)


def _hues(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    alpha, beta = red - (green + blue) / 2, math.sqrt(3) / 2 * (green - blue)
    return _circle(torch.atan2(beta, alpha), (alpha**2 + beta**2).sqrt(), 12, 2 * math.pi)


def _directions(strength: Tensor, angle: Tensor) -> Tensor:
    total = strength.mean((1, 2))[:, None].clamp(min=1e-6)
    return _circle(angle, strength, 8, math.pi) / total


def _laplacian(plane: Tensor) -> Tensor:
    middle = plane[:, 1:-1, 1:-1]
    around = plane[:, :-2, 1:-1] + plane[:, 2:, 1:-1] + plane[:, 1:-1, :-2] + plane[:, 1:-1, 2:]
    return (around - 4 * middle).square().mean((1, 2)).sqrt()


def _likeness(plane: Tensor, other: Tensor) -> Tensor:
    """Correlation; 1 of a flat picture, which is like any of its mirror images."""
    deviation = plane - plane.mean((1, 2), keepdim=True)
    other = other - other.mean((1, 2), keepdim=True)
    power = deviation.square().mean((1, 2))
    return torch.where(power < 1e-8, 1.0, (deviation * other).mean((1, 2)) / power.clamp(min=1e-8))


def _whole_picture(rgb: Tensor, luma: Tensor, chroma: Tensor) -> Tensor:
    red, green, blue = rgb.unbind(1)
    first, second = (red - green).flatten(1), ((red + green) / 2 - blue).flatten(1)
    spread = (first.var(1) + second.var(1)).sqrt()
    colourful = spread + 0.3 * (first.mean(1) ** 2 + second.mean(1) ** 2).sqrt()
    levels = (rgb * 4).floor().clamp(max=3).long()
    codes = (levels[:, 0] * 16 + levels[:, 1] * 4 + levels[:, 2]).flatten(1)
    shares = torch.stack([code.bincount(minlength=64) for code in codes]).double() / _SIDE**2
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum(1)
    low, median, high = luma.flatten(1).quantile(torch.tensor([0.05, 0.5, 0.95]).double(), 1)
    quarter = _SIDE // 4
    middle = slice(quarter, -quarter)

    def against_border(plane: Tensor) -> Tensor:
        inside = plane[:, middle, middle]
        outside = (plane.sum((1, 2)) - inside.sum((1, 2))) / (_SIDE**2 - (2 * quarter) ** 2)
        return inside.mean((1, 2)) - outside

    return torch.stack(
        [
            colourful, entropy, shares.amax(1), median, high - low,
            against_border(luma), against_border(chroma),
        ],
        1,
    )  # fmt: skip
