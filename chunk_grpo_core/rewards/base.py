"""What a reward is: pictures and prompts in, one number per picture out.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Reward", "RewardBatch", "RewardFailed", "RewardPart", "check_images"]


@dataclass(frozen=True, kw_only=True)
class RewardPart:
    """Scores of B pictures by one of several rewards that are combined."""

    name: str
    """Different from the names of the other parts."""
    weight: float
    """Factor of this reward in the combination; 0 only records it."""
    values: Tensor
    """Scores before weighting, CPU float32, shape (B,). Meaningless where ``valid`` is False."""
    valid: Tensor
    """CPU bool, shape (B,); never True for a score that is not finite."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "valid", _checked(self.values, self.valid))

    @property
    def known(self) -> Tensor:
        """Scores with NaN where they are not valid, float32, shape (B,)."""
        return torch.where(self.valid, self.values, torch.nan)


@dataclass(frozen=True)
class RewardBatch:
    """Scores of B pictures.

    A score that could not be computed has ``valid == False``; it takes no part in advantages and
    is counted. It is never replaced by 0.0. A score that is not finite is never valid, whatever
    the reward says, and neither is one of a combination of which a part with a weight other than
    0 is not valid.
    """

    values: Tensor
    """Scores, CPU float32, shape (B,). Meaningless where ``valid`` is False."""
    valid: Tensor
    """CPU bool, shape (B,)."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Further numbers per picture, each CPU float32 of shape (B,), for records and tables."""
    parts: tuple[RewardPart, ...] = ()
    """What ``values`` is the weighted sum of; empty for a reward that is not a combination."""

    def __post_init__(self) -> None:
        valid = _checked(self.values, self.valid)
        for part in self.parts:
            if part.values.shape != self.values.shape:
                raise ValueError(
                    f"part {part.name} has {len(part.values)} scores, not {len(self.values)}"
                )
            if part.weight:
                valid = valid & part.valid
        object.__setattr__(self, "valid", valid)

    @property
    def known(self) -> Tensor:
        """Scores with NaN where they are not valid, float32, shape (B,)."""
        return torch.where(self.valid, self.values, torch.nan)

    @property
    def details(self) -> dict[str, Tensor]:
        """The extras and the score of every part, NaN where not valid, each of shape (B,)."""
        extras = {k: torch.where(self.valid, v, torch.nan) for k, v in self.extras.items()}
        return {**extras, **{part.name: part.known for part in self.parts}}

    @classmethod
    def failed(cls, count: int) -> RewardBatch:
        """Build a batch of ``count`` invalid scores."""
        return cls(torch.full((count,), torch.nan), torch.zeros(count, dtype=torch.bool))

    @classmethod
    def of(cls, values: Tensor, **extras: Tensor) -> RewardBatch:
        """Build a batch in which every finite value is valid."""
        values = values.detach().to("cpu", torch.float32)
        cpu = {name: extra.detach().to("cpu", torch.float32) for name, extra in extras.items()}
        return cls(values, torch.ones_like(values, dtype=torch.bool), cpu)


def _checked(values: Tensor, valid: Tensor) -> Tensor:
    """``valid`` without the values that are not finite; both must have shape (B,)."""
    if values.ndim != 1 or valid.shape != values.shape:
        raise ValueError(
            f"values and valid must both have shape (B,), got {tuple(values.shape)} "
            f"and {tuple(valid.shape)}"
        )
    return valid & torch.isfinite(values)


class RewardFailed(Exception):
    """A reward could not score a batch (a server timed out, say); the batch is masked, counted,
    and training goes on. Any other exception stops the run."""


class Reward(Protocol):
    """Judge pictures. ``name`` appears in records and plots."""

    @property
    def name(self) -> str:
        """Short name, for example ``"tiny_world"``."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score B pictures.

        Args:
            images: (B, H, W, 3), CPU float32 in 0..1.
            prompts: B captions, one for each picture.

        Raises:
            ValueError: Shapes or lengths do not match (see :func:`check_images`).
            RewardFailed: Nothing could be scored this time.
        """
        ...


def check_images(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Check what every reward takes and return it as CPU float32.

    Raises:
        ValueError: ``images`` is not (B, H, W, 3) or there is not one prompt for each picture.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must have shape (B, H, W, 3), got {tuple(images.shape)}")
    if isinstance(prompts, str) or len(prompts) != images.shape[0]:
        got = 1 if isinstance(prompts, str) else len(prompts)
        raise ValueError(f"{images.shape[0]} images need {images.shape[0]} prompts, got {got}")
    return images.detach().to("cpu", torch.float32)
