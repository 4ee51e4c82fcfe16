"""Rewards computed from pixels alone: no weights, no download, for first tries and for tests.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Fingerprint, Metadata, RewardBatch, check_images

__all__ = ["TargetColour"]

_HEX = re.compile(r"#?([0-9a-fA-F]{6})")


@dataclass(frozen=True)
class TargetColour:
    """How close a picture's pixels are to one colour: 1 - mean |pixel - colour|, in 0..1."""

    colour: str = "#2060c0"
    """Six hexadecimal digits, red green blue."""

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.colour):
            raise ValueError(
                f"colour is {self.colour!r}; write six hexadecimal digits, for example #2060c0"
            )

    @property
    def name(self) -> str:
        """See :class:`~chunk_grpo_core.rewards.base.Reward`."""
        return "target_colour"

    @property
    def fingerprint(self) -> Fingerprint:
        """See :class:`~chunk_grpo_core.rewards.base.Reward`."""
        return {"colour": self.colour}

    def score(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Metadata] | None = None,
    ) -> RewardBatch:
        """See :class:`~chunk_grpo_core.rewards.base.Reward`; prompts are not looked at."""
        images = check_images(images, prompts, metadata)
        digits = self.colour.removeprefix("#")
        target = torch.tensor([int(digits[i : i + 2], 16) / 255.0 for i in (0, 2, 4)])
        return RewardBatch.of(1.0 - (images - target).abs().mean((1, 2, 3)))
