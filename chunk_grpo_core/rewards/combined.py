"""Several rewards as one.

The value of a combination is the weighted sum of its parts. The parts travel along in the batch, so
that advantages can be formed from each of them (``method/advantage.py``) and records can show each.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..method.policy import Policy
from ..method.policy_reward import Fit, bound, needs_policy, units_of_reward
from ..method.reward import (
    Fingerprint,
    Reward,
    RewardBatch,
    RewardFailed,
    RewardPart,
    checked_inputs,
    is_groupwise,
    is_remote,
    is_scale_free,
)
from ..prompts.example import Example, Prompt

__all__ = ["CombinedReward", "WeightedReward", "check_weight"]

log = logging.getLogger(__name__)

Combination = TypeVar("Combination", bound="CombinedReward")

_LEAST, _MOST = 1e-12, 1e6
"""Smaller weights leave no spread that an advantage could see; larger ones lose digits."""


def check_weight(weight: float, name: str) -> None:
    """Refuse a weight that no combination can use; ``name`` is what the message calls it.

    Raises:
        ValueError: It is not 0, and not of a size from 1e-12 to 1e6.
    """
    if weight and not _LEAST <= abs(weight) <= _MOST:
        raise ValueError(
            f"{name} is {weight}; it must be finite: 0, or from {_LEAST:g} to {_MOST:g}, with or "
            "without a minus"
        )


@dataclass(frozen=True, kw_only=True)
class WeightedReward:
    """A reward and its factor in a combination."""

    reward: Reward
    weight: float = 1.0
    """0, or of a size from 1e-12 to 1e6. Below 0 the reward is made small; 0 scores and records it,
    and trains nothing."""

    def __post_init__(self) -> None:
        check_weight(self.weight, f"the weight of reward {self.reward.name}")


class CombinedReward:
    """The weighted sum of rewards.

    A picture has a score where all parts with a weight other than 0 have one. A part that raises
    :class:`~chunk_grpo_core.method.reward.RewardFailed` has no scores for that batch; the others
    are scored and recorded all the same.

    Parts that are combinations themselves are taken apart, and weights multiply. A name that
    occurs again gets a number: ``clip``, ``clip_2``, ``clip_3``. Extras of a part are kept as
    ``<part>/<extra>``.
    """

    def __init__(self, parts: Sequence[WeightedReward]) -> None:
        """Combine.

        Args:
            parts: At least one reward, at least one weight other than 0.

        Raises:
            ValueError: There are no parts, or all weights are 0.
        """
        self.parts: dict[str, WeightedReward] = {}
        """Name -> reward and weight, in the order given."""
        for part in parts:
            if is_scale_free(part.reward):
                raise ValueError(
                    f"the balance of {part.reward.name} cannot be a part of something else; "
                    "combine first and balance last"
                )
        for part in _flat(parts):
            self.parts[_free_name(part.reward.name, self.parts)] = part
        if not self.parts:
            raise ValueError("there are no rewards to combine; give at least one")
        if not any(part.weight for part in self.parts.values()):
            raise ValueError(
                f"the weights of {', '.join(self.parts)} are all 0; at least one must not be"
            )

    @property
    def name(self) -> str:
        """Weights and names of the parts, for example ``"1.0*clip - 0.2*length"``."""
        terms = [
            f"{'-' if part.weight < 0 else '+'} {abs(part.weight)}*{name}"
            for name, part in self.parts.items()
        ]
        return " ".join(terms).removeprefix("+ ")

    @property
    def fingerprint(self) -> Fingerprint:
        """Weight and fingerprint of every part, as ``<part>/<key>``."""
        entries: dict[str, str | int | float] = {}
        for name, part in self.parts.items():
            entries[f"{name}/weight"] = part.weight
            entries |= {f"{name}/{key}": value for key, value in part.reward.fingerprint.items()}
        return entries

    @property
    def is_remote(self) -> bool:
        """Whether a part is."""
        return any(is_remote(part.reward) for part in self.parts.values())

    @property
    def groupwise(self) -> bool:
        """Whether a part is."""
        return any(is_groupwise(part.reward) for part in self.parts.values())

    @property
    def needs_policy(self) -> bool:
        """Whether a part does."""
        return any(needs_policy(part.reward) for part in self.parts.values())

    @property
    def units_per_picture(self) -> int:
        """Those of all parts, also of one that is only recorded."""
        return sum(units_of_reward(part.reward) for part in self.parts.values())

    def bind(self: Combination, policy: Policy, fit: Fit) -> Combination:
        """Bind the parts; see :class:`~chunk_grpo_core.method.policy_reward.PolicyReward`."""
        combination = copy.copy(self)
        combination.parts = {
            name: replace(part, reward=bound(part.reward, policy, fit))
            for name, part in self.parts.items()
        }
        return combination

    def with_parts(self, change: Callable[[Reward], Reward]) -> CombinedReward:
        """The same combination, each of its rewards changed; their names stay."""
        made = copy.copy(self)
        made.parts = {n: replace(p, reward=change(p.reward)) for n, p in self.parts.items()}
        return made

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`; never raises RewardFailed.

        Every part gets the same examples.
        """
        images, examples = checked_inputs(images, examples)
        total = torch.zeros(len(images), dtype=torch.float64)
        parts, extras, errors = [], {}, []
        for name, part in self.parts.items():
            batch = _score(name, part.reward, images, examples)
            parts.append(
                RewardPart(name=name, weight=part.weight, values=batch.values, valid=batch.valid)
            )
            extras |= {f"{name}/{key}": values for key, values in batch.extras.items()}
            errors += [f"{name}: {batch.error}"] if batch.error else []
            if part.weight:  # 0 times NaN would be NaN
                total += part.weight * batch.values.double()
        return RewardBatch(
            total.float(),
            torch.ones(len(images), dtype=torch.bool),
            extras,
            tuple(parts),
            "; ".join(errors),
        )


def _score(name: str, reward: Reward, images: Tensor, examples: Sequence[Example]) -> RewardBatch:
    try:
        batch = reward.score(images, examples)
    except RewardFailed as error:
        log.warning("reward %s has no scores for a batch: %s", name, error)
        return RewardBatch.failed(len(images), str(error))
    if len(batch.values) != len(images):
        raise ValueError(f"reward {name} gave {len(batch.values)} scores for {len(images)} images")
    return batch


def _flat(parts: Sequence[WeightedReward]) -> list[WeightedReward]:
    """Replace combinations by their parts."""
    flat = []
    for part in parts:
        if isinstance(part.reward, CombinedReward):
            flat += [
                WeightedReward(reward=inner.reward, weight=part.weight * inner.weight)
                for inner in part.reward.parts.values()
            ]
        else:
            flat.append(part)
    return flat


def _free_name(name: str, taken: dict[str, WeightedReward]) -> str:
    """``name``, or ``name_2``, ``name_3``, ...: the first that is free."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
