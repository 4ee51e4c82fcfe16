"""Rewards computed from pixels alone: no weights, no download, no prompt.

For first tries, for tests and as small parts of a combination. Alone they show that training works,
not that pictures get better: noise is sharp and hard to compress, a white sheet is bright.

==========================  ==================================  ========
reward                      value                               range
==========================  ==================================  ========
``brightness``              mean luma (Rec. 601, as in JPEG)    0..1
``saturation``              mean saturation of HSV              0..1
``sharpness``               variance of the Laplacian of luma   0..16
``jpeg_compressibility``    - bits per pixel of the JPEG file   below 0
``jpeg_incompressibility``  bits per pixel of the JPEG file     above 0
``target_colour``           1 - mean distance to the colour     0..1
``target_image``            1 - mean distance to the target     0..1
==========================  ==================================  ========

The JPEG rewards are those of DDPO with another unit (there kB), which does not grow with the
picture. Sharpness is the focus measure LAPV.

Legend: B pictures, H W picture size.

References:
    Training Diffusion Models with Reinforcement Learning (Black et al., 2023), arXiv 2305.13301,
    section 5.1.
    Analysis of focus measure operators for shape-from-focus (Pertuz et al., 2013), LAPV.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..method.reward import Fingerprint, RewardBatch
from ..optional import require
from ..prompts.example import Prompt
from ..settings.declared import shortened
from .networks.network import score_pictures
from .picture_files import load_picture
from .pixels import to_levels

__all__ = [
    "AnalyticReward",
    "brightness",
    "jpeg_size",
    "saturation",
    "sharpness",
    "target_colour",
    "target_image",
]

_HEX = re.compile(r"#?([0-9a-fA-F]{6})")
_LUMA = (0.299, 0.587, 0.114)
_ASPECT_TOLERANCE = 0.02
_PICTURES_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class AnalyticReward:
    """A formula over pixels as a reward."""

    name: str
    """See :class:`~chunk_grpo_core.method.reward.Reward`."""
    formula: Callable[[Tensor], Tensor]
    """Pictures (B, H, W, 3), float32, multiples of 1/255 in 0..1 -> scores (B,)."""
    settings: Fingerprint = field(default_factory=dict)
    """What the formula depends on besides the picture."""

    @property
    def fingerprint(self) -> Fingerprint:
        """The settings."""
        return self.settings

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`; prompts are not looked at."""

        def judge(levels: Tensor, prompts: list[str]) -> Tensor:
            return self.formula(levels.float() / 255.0)

        return score_pictures(images, examples, judge, _PICTURES_AT_ONCE)


def brightness() -> AnalyticReward:
    """Mean luma, 0 (black) to 1 (white)."""
    return AnalyticReward(name="brightness", formula=lambda images: _luma(images).mean((1, 2)))


def saturation() -> AnalyticReward:
    """Mean saturation of HSV, (max - min) / max of a pixel's channels: 0 (grey) to 1."""

    def formula(images: Tensor) -> Tensor:
        top, bottom = images.amax(-1), images.amin(-1)
        return ((top - bottom) / top.clamp(min=1 / 255)).mean((1, 2))

    return AnalyticReward(name="saturation", formula=formula)


def sharpness() -> AnalyticReward:
    """Variance of the Laplacian (4 neighbours) of luma over the inner pixels, 0..16.

    Times 255^2 it is what OpenCV users know as ``Laplacian(grey).var()``.
    """

    def formula(images: Tensor) -> Tensor:
        height, width = images.shape[1:3]
        if min(height, width) < 3:
            raise ValueError(
                f"sharpness needs pictures of at least 3 x 3 pixels, got {width} x {height}"
            )
        luma = _luma(images)
        inner = luma[:, 1:-1, 1:-1]
        around = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
        return (around - 4.0 * inner).var((1, 2), correction=0)

    return AnalyticReward(name="sharpness", formula=formula)


def jpeg_size(*, small: bool, quality: int = 95) -> AnalyticReward:
    """Size of the picture as a JPEG file, in bits per pixel.

    The file's header, some 600 bytes, is part of it: at 64 x 64 pixels more than 1 bit per pixel.

    Args:
        small: Whether small files are good: the reward is the size with a minus sign.
        quality: Of the JPEG encoder, 1..95.

    Raises:
        ValueError: ``quality`` is out of range.
    """
    if not 1 <= quality <= 95:
        raise ValueError(f"quality is {quality}; it must be in 1..95")

    def formula(images: Tensor) -> Tensor:
        sizes = torch.tensor([float(_jpeg_bytes(levels, quality)) for levels in to_levels(images)])
        bits_per_pixel = 8.0 * sizes / (images.shape[1] * images.shape[2])
        return -bits_per_pixel if small else bits_per_pixel

    name = "jpeg_compressibility" if small else "jpeg_incompressibility"
    return AnalyticReward(name=name, formula=formula, settings={"quality": quality})


def target_colour(colour: str = "#2060c0") -> AnalyticReward:
    """How close the pixels are to one colour, 0..1.

    Args:
        colour: Six hexadecimal digits, red green blue.

    Raises:
        ValueError: ``colour`` is none.
    """
    digits = _HEX.fullmatch(colour)
    if not digits:
        raise ValueError(
            f"colour is {shortened(colour)}; write six hexadecimal digits, for example #2060c0"
        )
    target = torch.tensor([int(digits[1][at : at + 2], 16) for at in (0, 2, 4)]) / 255.0
    return AnalyticReward(
        name="target_colour",
        formula=lambda images: 1.0 - (images - target).abs().mean((1, 2, 3)),
        settings={"colour": f"#{digits[1].lower()}"},
    )


def _target(file: str | Path) -> Tensor:
    """The picture in a file; errors name the setting, too."""
    try:
        return load_picture(file)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"image: {error}") from None


def target_image(image: str | Path | Tensor) -> AnalyticReward:
    """How close the pixels are to those of one picture, 0..1.

    The target is resized (bicubic with antialiasing) to the size of the pictures that are scored.

    Args:
        image: A picture file, or a picture (H, W, 3) in 0..1.

    Raises:
        ValueError: It is not a picture; or, when scoring, its aspect ratio differs from that of the
            pictures by more than 2 %.
        FileNotFoundError: There is no such file.
    """
    picture = image if isinstance(image, Tensor) else _target(image)
    if picture.ndim != 3 or picture.shape[-1] != 3 or not torch.isfinite(picture).all():
        raise ValueError(
            f"the target must be finite, of shape (H, W, 3), and has shape {tuple(picture.shape)}"
        )
    levels = to_levels(picture.detach().cpu())
    target = levels.permute(2, 0, 1)[None].float() / 255.0

    def formula(images: Tensor) -> Tensor:
        (height, width), (own_height, own_width) = images.shape[1:3], target.shape[2:]
        if abs(width * own_height / (height * own_width) - 1.0) > _ASPECT_TOLERANCE:
            raise ValueError(
                f"the target has {own_width} x {own_height} pixels, the pictures have {width} x "
                f"{height}; crop the target to their aspect ratio"
            )
        wanted = target
        if (height, width) != (own_height, own_width):
            wanted = functional.interpolate(target, (height, width), mode="bicubic", antialias=True)
        return 1.0 - (images - wanted.clamp(0, 1).permute(0, 2, 3, 1)).abs().mean((1, 2, 3))

    digest = hashlib.sha256(repr(tuple(levels.shape)).encode() + levels.numpy().tobytes())
    return AnalyticReward(
        name="target_image", formula=formula, settings={"target": digest.hexdigest()}
    )


def _luma(images: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) -> luma (B, H, W)."""
    return (images * torch.tensor(_LUMA)).sum(-1)


def _jpeg_bytes(levels: Tensor, quality: int) -> int:
    """Size of one picture (H, W, 3), uint8, as a JPEG file."""
    file = io.BytesIO()
    image = require("PIL.Image", "To measure the size of JPEG files").fromarray(levels.numpy())
    image.save(file, format="JPEG", quality=quality)
    return file.tell()
