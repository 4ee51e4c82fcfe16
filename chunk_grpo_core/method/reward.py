"""What a reward is: pictures and examples in, one number per picture out.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ..prompts.example import Example, Prompt, examples_of

__all__ = [
    "Fingerprint",
    "NoReward",
    "NothingScored",
    "Reward",
    "RewardBatch",
    "RewardFailed",
    "RewardPart",
    "check_scored",
    "checked_inputs",
    "is_groupwise",
    "is_remote",
    "is_scale_free",
    "last_error",
    "score_or_mask",
]

log = logging.getLogger(__name__)

_NOT_FINITE = "no picture is finite; the model or its LoRA gives NaN or infinity"

Fingerprint = Mapping[str, str | int | float]
"""What a score depends on besides the picture and its example."""


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
    error: str = ""
    """Why scores are missing, where the reward (or a part of it) said so."""
    are_answers: bool = False
    """Whether they are a person's answers, 1 or -1, which are advantages as they are."""

    @property
    def is_not_finite(self) -> bool:
        """Whether no picture was finite, so that none was given to the reward."""
        return self.error == _NOT_FINITE

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
    def failed(cls, count: int, error: str = "") -> RewardBatch:
        """Build a batch of ``count`` invalid scores; ``error`` says why."""
        nothing = torch.full((count,), torch.nan)
        return cls(nothing, torch.zeros(count, dtype=torch.bool), error=error)

    @classmethod
    def of_answers(cls, answers: Tensor) -> RewardBatch:
        """What a person has said of B pictures, 1 or -1, in place of what a reward would."""
        valid = torch.ones_like(answers, dtype=torch.bool)
        part = RewardPart(name="picks", weight=1.0, values=answers, valid=valid)
        return cls(answers, valid, parts=(part,), are_answers=True)

    @classmethod
    def joined(cls, batches: Sequence[RewardBatch]) -> RewardBatch:
        """Put the parts of one group together; a part that failed as a whole has no extras.

        Args:
            batches: One or more, of the same reward.
        """
        if len(batches) == 1:
            return batches[0]
        names = dict.fromkeys(name for batch in batches for name in batch.extras)
        parts = next((batch.parts for batch in batches if batch.parts), ())
        unknown = [cls.failed(len(batch.values)) for batch in batches]

        def part(index: int) -> RewardPart:
            pieces = [
                b.parts[index] if b.parts else u for b, u in zip(batches, unknown, strict=True)
            ]
            return replace(
                parts[index],
                values=torch.cat([piece.values for piece in pieces]),
                valid=torch.cat([piece.valid for piece in pieces]),
            )

        return cls(
            torch.cat([batch.values for batch in batches]),
            torch.cat([batch.valid for batch in batches]),
            {
                name: torch.cat(
                    [b.extras.get(name, u.values) for b, u in zip(batches, unknown, strict=True)]
                )
                for name in names
            },
            tuple(map(part, range(len(parts)))),
            last_error(batches),
            all(batch.are_answers for batch in batches),
        )

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


class NothingScored(RuntimeError):
    """Every score is missing, so there is nothing to train on or to compare."""


def score_or_mask(reward: Reward, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
    """Score pictures; if the reward fails, none of them has a valid score, and a warning says why.

    Pictures of which none is finite are not given to the reward.

    Args:
        reward: The judge.
        images: See :meth:`Reward.score`.
        examples: One for each picture.
    """
    if not images.flatten(1).isfinite().all(1).any():
        return RewardBatch.failed(len(images), _NOT_FINITE)
    try:
        return reward.score(images, examples)
    except RewardFailed as error:
        log.warning("%d pictures have no score of %s: %s", len(images), reward.name, error)
        return RewardBatch.failed(len(images), str(error))


def last_error(batches: Sequence[RewardBatch]) -> str:
    """What the reward said last; empty if it never said why scores are missing."""
    return next((batch.error for batch in reversed(batches) if batch.error), "")


def check_scored(batches: Sequence[RewardBatch], reward: str, what: str) -> None:
    """Make sure that at least one picture has a score.

    Args:
        batches: All that were scored, of all processes.
        reward: Name of the reward, for the message.
        what: What the pictures belong to, such as an iteration, for the message.

    Raises:
        NothingScored: None has.
    """
    if any(bool(batch.valid.any()) for batch in batches):
        return
    if all(batch.is_not_finite for batch in batches):
        raise NothingScored(
            f"divergence: no picture of {what} is finite; the model or its LoRA gives NaN or "
            "infinity. Lower the learning rate, or use weights of another type (bf16, float32)"
        )
    reason = last_error(batches) or "every score is missing or not finite"
    raise NothingScored(
        f"all-masked: no picture of {what} has a score (reward {reward}: {reason}); repair the "
        "reward"
    )


class Reward(Protocol):
    """Judge pictures.

    A score depends on its own picture and example alone: not on the order of the batch, nor on how
    many pictures are scored at once.
    """

    @property
    def name(self) -> str:
        """Short name for records and plots, for example ``"tiny_world"``."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Digests of weight files, version of the preprocessing, dtype, settings; for records.

        Equal fingerprints mean comparable scores. No paths and no device: those may change between
        the start of a run and its resumption.
        """
        ...

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """Score B pictures.

        Args:
            images: (B, H, W, 3), CPU float32 in 0..1. A picture with NaN or infinity gets no valid
                score.
            examples: B prompts, one for each picture; a string is an example without metadata.

        Raises:
            ValueError: Shapes or lengths do not match (see :func:`checked_inputs`).
            RewardFailed: Nothing could be scored this time.
        """
        ...


class NoReward:
    """Nothing is measured: pictures are made and none of them gets a score. Only an algorithm that
    has answers already (``Trajectory.answers``) can train with it. See :class:`Reward`."""

    name = "none"
    fingerprint: Fingerprint = {}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """No valid score for any of B pictures."""
        return RewardBatch.failed(len(checked_inputs(images, examples)[0]))


def is_groupwise(reward: Reward) -> bool:
    """Whether scores depend on the other pictures of a group, as those of a
    :class:`~chunk_grpo_core.rewards.function.FunctionReward` may. Such rewards say
    ``groupwise = True``."""
    return bool(getattr(reward, "groupwise", False))


def is_remote(reward: Reward) -> bool:
    """Whether each question costs somebody else something: those of a server, or of a combination
    with one. Such rewards say ``is_remote = True``; without that word a reward is local."""
    return bool(getattr(reward, "is_remote", False))


def is_scale_free(reward: Reward) -> bool:
    """Whether the parts of a combination are to be brought to one scale before they are added,
    whatever ``advantage.combine`` is. Such rewards say ``scale_free = True``."""
    return bool(getattr(reward, "scale_free", False))


def checked_inputs(
    images: Tensor, examples: Sequence[Prompt]
) -> tuple[Tensor, tuple[Example, ...]]:
    """Check what every reward takes.

    Returns:
        The pictures as CPU float32, and B examples.

    Raises:
        ValueError: ``images`` is not (B, H, W, 3) in floating point, or there is not one prompt for
            each picture.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must have shape (B, H, W, 3), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in 0..1, got {images.dtype}")
    count = images.shape[0]
    is_one = isinstance(examples, (str, Example))
    given = 1 if is_one else len(examples)
    if is_one or given != count:
        raise ValueError(f"{count} images need {count} prompts, got {given}")
    return images.detach().to("cpu", torch.float32), examples_of(examples)
