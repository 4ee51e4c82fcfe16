"""A reward that can be verified: it reads the picture and compares it with its caption.

Six soft scores in 0..1: the five attributes of the caption, and cleanliness, which falls with
what reinforcement learning likes to break: texture in flat areas, stray dots, colours off the
palette.

Legend: B pictures, K = 2 objects at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...method.reward import Fingerprint, RewardBatch, checked_inputs
from ...prompts.example import Prompt
from .measure import OBJECTS, Reading, measure
from .render import IMAGE_SIZE, SIZE_LIMIT, palette
from .world import indices_of, parse

__all__ = ["WEIGHTS", "TinyWorldReward"]

#: Weight of each score in the reward; they sum to 1.
WEIGHTS: dict[str, float] = {
    "background": 0.2,
    "colour": 0.2,
    "shape": 0.2,
    "size": 0.125,
    "count": 0.125,
    "clean": 0.15,
}
_COLOUR_WIDTH = 0.35
_PURITY_WIDTH = 0.2
_DIRT_WIDTH = 0.1
# Share of dirty pixels that costs two thirds of the cleanliness, for background and objects.
# Objects get more: they are small, so a few pixels of a slightly wrong edge weigh much.
_DIRT_SHARES = (0.06, 0.25)


def _bell(distance: Tensor, width: float) -> Tensor:
    return torch.exp(-((distance / width) ** 2))


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (B,) of (B, H, W) over a mask; 0 where the mask is empty."""
    weight = mask.float()
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


def _likeness(images: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """How much the masked pixels have the wanted colour (B, 3): 0..1, (B,)."""
    distance = (images - colour[:, None, None]).norm(dim=-1)
    return _mean_where(_bell(distance, _COLOUR_WIDTH), mask)


def _shape(reading: Reading, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Soft score and hard verdict of each object, both (B, K)."""
    index = wanted[:, None, None].expand(-1, OBJECTS, 1)
    overlap = reading.overlap.gather(2, index)[..., 0]
    best_other = reading.overlap.scatter(2, index, 0.0).amax(2)
    lead = (0.5 + (overlap - best_other) / 0.2).clamp(0, 1)
    fit = (overlap / 0.85).clamp(0, 1) ** 2
    form = (reading.aspect / 0.9).clamp(0, 1)
    return lead * fit * form, (overlap > best_other) & (overlap > 0.7)


def _count(reading: Reading, wanted: Tensor) -> Tensor:
    """Soft score (B,): falls with a missing object and with a further one, by their areas."""
    first, second, third = reading.areas.unbind(1)
    scale = (0.5 * first).clamp(min=1)
    has_first = (first > 0).float()
    more = (second / scale).clamp(max=1)
    too_many = (third / scale).clamp(max=1)
    return has_first * torch.where(wanted == 0, 1 - more, more * (1 - too_many))


def _clean(images: Tensor, reading: Reading, colours: Tensor) -> Tensor:
    """Cleanliness (B,): flat areas that are flat, in colours of the palette."""
    areas = ((reading.outside, reading.back), (reading.inside, reading.front))
    dirt = torch.zeros(len(images))
    for (mask, colour), share in zip(areas, _DIRT_SHARES, strict=True):
        off = (images - colour[:, None, None]).norm(dim=-1)
        dirt = dirt + _mean_where(1 - _bell(off, _DIRT_WIDTH), mask) / share
    purity = torch.ones(len(images))
    for colour in (reading.back, reading.front):
        purity = purity * _bell(torch.cdist(colour[None], colours[None])[0].amin(1), _PURITY_WIDTH)
    return torch.exp(-dirt) * purity


def _nearest(colour: Tensor, colours: Tensor) -> Tensor:
    """Index (B,) of the palette colour nearest to each colour (B, 3)."""
    return torch.cdist(colour[None], colours[None])[0].argmin(1)


@torch.no_grad()
def _judge(images: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """All scores (B,) of finite pictures for wanted attribute indices (B, 5)."""
    colours = palette()
    reading = measure(images)
    count, size, colour, shape, back = wanted.unbind(1)
    real = (torch.arange(OBJECTS) < reading.object_count[:, None]).float()
    number, some = real.sum(1).clamp(min=1), (reading.object_count > 0).float()

    soft_shape, hard_shape = _shape(reading, shape)
    side = torch.where(size == 1, 1.0, -1.0)[:, None]
    soft_size = torch.sigmoid(side * (reading.radius - SIZE_LIMIT) / 0.6)
    scores = {
        "background": _likeness(images, reading.outside, colours[back]),
        "colour": _likeness(images, reading.inside, colours[colour]) * some,
        "shape": (soft_shape * real).sum(1) / number,
        "size": (soft_size * real).sum(1) / number,
        "count": _count(reading, count),
        "clean": _clean(images, reading, colours) * some,
    }
    right = [
        (_nearest(reading.back, colours) == back) & (scores["background"] > 0.5),
        (_nearest(reading.front, colours) == colour) & (scores["colour"] > 0.5),
        ((hard_shape * real).sum(1) == real.sum(1)) & (some > 0),
        (((soft_size > 0.5) * real).sum(1) == real.sum(1)) & (some > 0),
        reading.object_count == count + 1,
    ]
    hard = torch.stack(right, 1).float()
    reward = sum((w * scores[name] for name, w in WEIGHTS.items()), torch.zeros(len(images)))
    return {"reward": reward, **scores, "attributes": hard.mean(1), "strict": hard.amin(1)}


class TinyWorldReward:
    """Implements :class:`chunk_grpo_core.method.reward.Reward` for the tiny world."""

    @property
    def name(self) -> str:
        """``"tiny_world"``."""
        return "tiny_world"

    @property
    def fingerprint(self) -> Fingerprint:
        """The weights of the scores."""
        return WEIGHTS

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """Judge B pictures of 64 x 64 pixels.

        Args:
            images: (B, 64, 64, 3), CPU float32 in 0..1. A picture with NaN or infinity is not
                valid.
            examples: B captions of the tiny world; their metadata is not looked at.

        Returns:
            Rewards in 0..1. Extras in 0..1: the scores named in :data:`WEIGHTS`, ``attributes``
            (share of the five attributes that are right) and ``strict`` (1 if all are).

        Raises:
            ValueError: Shapes or lengths do not match, or a prompt is not of this world.
        """
        images, examples = checked_inputs(images, examples)
        if images.shape[1:3] != (IMAGE_SIZE, IMAGE_SIZE):
            size = f"{images.shape[2]} x {images.shape[1]}"
            raise ValueError(f"the tiny world has pictures of 64 x 64 pixels, got {size}")
        wanted = indices_of([parse(example.text) for example in examples])
        bad = ~torch.isfinite(images).flatten(1).all(1)
        usable = torch.where(bad[:, None, None, None], 0.0, images).clamp(0, 1)
        scores = {k: torch.where(bad, torch.nan, v) for k, v in _judge(usable, wanted).items()}
        return RewardBatch.of(scores.pop("reward"), **scores)
