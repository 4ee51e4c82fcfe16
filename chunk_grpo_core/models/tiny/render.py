"""Draw scenes as antialiased 64 x 64 pictures, from signed distances, many at once.

Legend: B pictures, K = 2 objects at most, H = W = 64 picture size; distances are in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .world import ATTRIBUTES, PALETTE, Scene, indices_of

__all__ = ["IMAGE_SIZE", "SIZE_LIMIT", "coverage", "palette", "render", "render_indices"]

IMAGE_SIZE = 64
#: Objects with a radius (half of their width) below this are small, above it large.
SIZE_LIMIT = 10.0
_CROSS_ARM = 0.36
# Radius ranges [count][size] in pixels, and position jitter [count] as (x, y).
_RADIUS = (((6.5, 7.5), (15.0, 17.0)), ((6.5, 7.5), (12.0, 13.0)))
_JITTER = ((2.0, 2.0), (1.0, 2.0))


def palette() -> Tensor:
    """The palette as float32 in 0..1, shape (6, 3), in the order of the colour attribute."""
    return torch.tensor(list(PALETTE.values()), dtype=torch.float32) / 255


def _box(x: Tensor, y: Tensor, half_w: Tensor, half_h: Tensor) -> Tensor:
    return torch.maximum(x.abs() - half_w, y.abs() - half_h)


def _circle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.hypot(x, y) - r


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return _box(x, y, r, r)


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    # Apex (0, -r), base from (-r, r) to (r, r); the slanted sides have the normal (2, -1).
    return torch.maximum(y - r, (2 * x.abs() - y - r) / 5**0.5)


def _cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    arm = _CROSS_ARM * r
    return torch.minimum(_box(x, y, r, arm), _box(x, y, arm, r))


_DISTANCES = (_circle, _square, _triangle, _cross)


def coverage(shape: int, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """How much of each pixel a shape covers, in 0..1.

    Args:
        shape: Index of the shape.
        x: Pixel centres relative to the centre of the shape; broadcasts with ``y`` and ``r``.
        y: The same downwards.
        r: Half the width of the shape.
    """
    return (0.5 - _DISTANCES[shape](x, y, r)).clamp(0, 1)


def _layout(indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Centres x, y and radius of the objects, each (B, K); the second object may be unused."""
    count, size = indices[:, 0], indices[:, 1]
    u = torch.rand(len(indices), 2, 3, generator=generator)
    u[:, 1, 2] = u[:, 0, 2]  # both objects of a picture have the same size
    low, high = torch.tensor(_RADIUS)[count, size].unbind(-1)
    jitter = torch.tensor(_JITTER)[count]
    middle = IMAGE_SIZE / 2
    base_x = torch.tensor([[middle, middle], [middle / 2, 3 * middle / 2]])[count]
    x = base_x + (2 * u[..., 0] - 1) * jitter[:, :1]
    y = middle + (2 * u[..., 1] - 1) * jitter[:, 1:]
    r = low[:, None] + u[..., 2] * (high - low)[:, None]
    return x, y, r


def render_indices(
    indices: Tensor, generator: torch.Generator, colours: Tensor | None = None
) -> Tensor:
    """Draw scenes given as attribute indices.

    Args:
        indices: int64, shape (B, 5).
        generator: Source of position and size jitter.
        colours: Other object and background colours than the palette's, (B, 2, 3) in 0..1.

    Returns:
        Pictures in 0..1, float32, shape (B, H, W, 3).
    """
    x, y, r = _layout(indices, generator)
    centres = torch.arange(IMAGE_SIZE) + 0.5
    dx = centres[None, None, None, :] - x[..., None, None]
    dy = centres[None, None, :, None] - y[..., None, None]
    alpha = torch.zeros(len(indices), 2, IMAGE_SIZE, IMAGE_SIZE)
    for shape in range(len(ATTRIBUTES["shape"])):
        rows = indices[:, 3] == shape
        alpha[rows] = coverage(shape, dx[rows], dy[rows], r[rows][..., None, None])
    alpha[indices[:, 0] == 0, 1] = 0.0
    mask = alpha.amax(1)[..., None]
    if colours is None:
        colours = palette()[indices[:, [2, 4]]]
    front, back = colours[:, 0, None, None, :], colours[:, 1, None, None, :]
    return back + mask * (front - back)


def render(scenes: Sequence[Scene], seed: int) -> Tensor:
    """Draw one picture for each scene: (B, H, W, 3), float32 in 0..1, fixed by the seed."""
    return render_indices(indices_of(scenes), torch.Generator().manual_seed(seed))
