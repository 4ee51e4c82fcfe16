"""Rewards that are made of others: each part by itself, and what is left without some of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ..method.asking import Asks
from ..method.reward import NoReward, Reward
from .combined import CombinedReward, WeightedReward

__all__ = ["asks", "changed", "measurable", "simple_parts"]


@runtime_checkable
class MadeOfOthers(Protocol):
    """A reward that hands pictures on to others."""

    def with_parts(self, change: Callable[[Reward], Reward]) -> Reward:
        """The same, each of them changed."""
        ...


def changed(reward: Reward, change: Callable[[Reward], Reward]) -> Reward:
    """The same reward, in which every part that is not made of others is what ``change`` makes of
    it. Names and weights stay."""
    if isinstance(reward, MadeOfOthers):
        return reward.with_parts(lambda part: changed(part, change))
    return change(reward)


def simple_parts(reward: Reward) -> list[Reward]:
    """All parts that are not made of others, in order; the reward itself if it is none."""
    parts: list[Reward] = []

    def note(part: Reward) -> Reward:
        parts.append(part)
        return part

    changed(reward, note)
    return parts


def asks(reward: Reward) -> bool:
    """Whether a part of it asks a person."""
    return any(isinstance(part, Asks) for part in simple_parts(reward))


def measurable(reward: Reward) -> Reward:
    """What measures held-out pictures: the reward without the parts that ask a person.

    Returns:
        The reward itself if none asks; ``NoReward`` if all do. Where only rewards of weight 0 are
        left, each counts 1.
    """
    if not asks(reward):
        return reward
    if not isinstance(reward, CombinedReward):
        return NoReward()
    left = {name: part for name, part in reward.parts.items() if not asks(part.reward)}
    if not left:
        return NoReward()
    is_watched = not any(part.weight for part in left.values())
    return CombinedReward(
        [
            WeightedReward(reward=part.reward, weight=1.0 if is_watched else part.weight)
            for part in left.values()
        ]
    )
