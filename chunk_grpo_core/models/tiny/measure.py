"""Read from the pixels what a picture shows: colours, objects, their sizes and shapes.

Legend: B pictures, K = 2 objects at most, S = 4 shapes, H = W = 64 picture size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .render import IMAGE_SIZE, coverage
from .world import ATTRIBUTES

__all__ = ["OBJECTS", "Reading", "measure"]

#: Objects read from a picture; further ones count as dirt.
OBJECTS = 2
_APART = 0.37  # colour distance from which a pixel does not belong to the background
_MIN_AREA = 8  # smallest object, in pixels of the half-size mask
_TEMPLATE = 24
_TEMPLATE_REACH = 1.15  # a template covers the object's box and a little around it


@dataclass(frozen=True)
class Reading:
    """What :func:`measure` found in B pictures. Colours are in 0..1, lengths in pixels."""

    back: Tensor
    """Background colour, (B, 3)."""
    front: Tensor
    """Object colour, (B, 3). Meaningless where ``object_count`` is 0."""
    outside: Tensor
    """Pixels that are surely background if the picture is clean, bool, (B, H, W)."""
    inside: Tensor
    """Pixels that are surely object, bool, (B, H, W)."""
    areas: Tensor
    """Areas of the three largest objects, largest first, 0 where there is none, (B, 3)."""
    object_count: Tensor
    """Number of objects, int64, (B,)."""
    radius: Tensor
    """Half the size of each object, (B, K)."""
    aspect: Tensor
    """Shorter side over longer side of each object, in 0..1, (B, K)."""
    overlap: Tensor
    """Overlap (soft IoU) of each object with each shape, in 0..1, (B, K, S)."""


def _grow(mask: Tensor, pixels: int) -> Tensor:
    """Dilate bool masks (B, H, W) by a number of pixels in each direction."""
    size = 2 * pixels + 1
    return functional.max_pool2d(mask[:, None].float(), size, 1, pixels)[:, 0] > 0


def _components(mask: Tensor) -> Tensor:
    """Label the 8-connected parts of bool masks (B, h, w): float numbers > 0, background 0."""
    b, h, w = mask.shape
    labels = torch.arange(1, h * w + 1, dtype=torch.float32).view(1, h, w) * mask
    while True:
        new = labels
        for _ in range(4):
            new = functional.max_pool2d(new[:, None], 3, 1, 1)[:, 0] * mask
        if torch.equal(new, labels):
            return labels
        labels = new


def _largest(labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels and areas (B, count) of the largest parts, and the number of parts (B,)."""
    flat = labels.flatten(1).long()
    areas = torch.zeros(len(flat), flat.shape[1] + 1)
    areas.scatter_add_(1, flat, torch.ones(flat.shape))
    areas[:, 0] = 0
    areas = torch.where(areas >= _MIN_AREA, areas, 0)
    top = areas.topk(count, dim=1)
    return top.indices, top.values, (areas > 0).sum(1)


def _mean_colour(images: Tensor, mask: Tensor) -> Tensor:
    """Mean colour (B, 3) of the masked pixels of (B, H, W, 3)."""
    weight = mask.float()
    total = torch.einsum("bhwc,bhw->bc", images, weight)
    return total / weight.sum((1, 2)).clamp(min=1)[:, None]


def _templates() -> Tensor:
    """What each shape covers around its box, (S, n, n)."""
    n = _TEMPLATE
    line = ((torch.arange(n) + 0.5) / n * 2 - 1) * _TEMPLATE_REACH * n / 2
    x, y, r = line[None, :], line[:, None], torch.tensor(n / 2)
    return torch.stack([coverage(s, x, y, r) for s in range(len(ATTRIBUTES["shape"]))])


def _box(alpha: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x, y and half width, half height of soft masks (M, H, W), each (M,)."""
    centres = torch.arange(IMAGE_SIZE) + 0.5
    out = []
    for axis in (1, 2):
        profile = alpha.amax(axis)
        width = profile.sum(1).clamp(min=1e-3)
        out += [(profile * centres).sum(1) / width, width / 2]
    return out[0], out[2], out[1], out[3]


def _match(alpha: Tensor, box: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Overlap (M, S) of soft masks (M, H, W), cut to their boxes, with the shapes."""
    x, y, half_w, half_h = box
    unit = (torch.arange(_TEMPLATE) + 0.5) / _TEMPLATE * 2 - 1
    unit = unit * _TEMPLATE_REACH
    grid_x = (x[:, None] + unit * half_w[:, None]) / IMAGE_SIZE * 2 - 1
    grid_y = (y[:, None] + unit * half_h[:, None]) / IMAGE_SIZE * 2 - 1
    n = _TEMPLATE
    grid = torch.stack([grid_x[:, None].expand(-1, n, n), grid_y[:, :, None].expand(-1, n, n)], -1)
    cut = functional.grid_sample(alpha[:, None], grid, align_corners=False).flatten(1)
    shapes = _templates().flatten(1)
    both = torch.minimum(cut[:, None], shapes).sum(-1)
    either = torch.maximum(cut[:, None], shapes).sum(-1)
    return both / either.clamp(min=1e-6)


def measure(images: Tensor) -> Reading:
    """Read B pictures.

    Args:
        images: (B, 64, 64, 3), CPU float32 in 0..1, finite.
    """
    edge = torch.ones(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    rough = images[:, edge].median(1).values
    far = (images - rough[:, None, None]).norm(dim=-1) > _APART
    half = functional.avg_pool2d(far[:, None].float(), 2)[:, 0] >= 0.5
    labels = _components(half)
    names, areas, object_count = _largest(labels, OBJECTS + 1)
    ours = labels[:, None] == names[:, :OBJECTS, None, None]
    ours &= (areas[:, :OBJECTS] > 0)[..., None, None]
    near = functional.interpolate(ours.float(), scale_factor=2) > 0
    near = _grow(near.flatten(0, 1), 2).view(-1, OBJECTS, IMAGE_SIZE, IMAGE_SIZE)
    objects = near.any(1)
    outside = ~_grow(objects, 1)
    inside = ~_grow(~(far & objects), 1)
    inside = torch.where(inside.any(2).any(1)[:, None, None], inside, far & objects)
    back = torch.where(outside.any(2).any(1)[:, None], _mean_colour(images, outside), rough)
    front = _mean_colour(images, inside)
    step = front - back
    share = ((images - back[:, None, None]) * step[:, None, None]).sum(-1)
    share = (share / step.square().sum(-1).clamp(min=1e-4)[:, None, None]).clamp(0, 1)
    alpha = (share[:, None] * near).flatten(0, 1)
    box = _box(alpha)
    width, height = box[2], box[3]
    aspect = torch.minimum(width, height) / torch.maximum(width, height)
    return Reading(
        back=back,
        front=front,
        outside=outside,
        inside=inside,
        areas=areas,
        object_count=object_count,
        radius=((width + height) / 2).view(-1, OBJECTS),
        aspect=aspect.view(-1, OBJECTS),
        overlap=_match(alpha, box).view(-1, OBJECTS, len(ATTRIBUTES["shape"])),
    )
