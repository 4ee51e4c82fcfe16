"""Reward models. ``REWARDS`` maps the name users choose to a loader that takes keyword settings.

A new reward is a new file with a class that has ``name`` and ``score`` (see ``base.py``), and one
line here.
"""

from __future__ import annotations

from collections.abc import Callable

from .base import Reward

__all__ = ["REWARDS", "load_reward"]


def _tiny_world() -> Reward:
    from ..tiny.reward import TinyWorldReward

    return TinyWorldReward()


def _target_colour(colour: str = "#2060c0") -> Reward:
    from .analytic import TargetColour

    return TargetColour(colour)


REWARDS: dict[str, Callable[..., Reward]] = {
    "tiny_world": _tiny_world,
    "target_colour": _target_colour,
}


def load_reward(name: str, **settings: object) -> Reward:
    """Load a reward by name.

    Raises:
        ValueError: The name is unknown, or a setting is out of range.
    """
    if name not in REWARDS:
        raise ValueError(f"reward is {name!r}; it must be one of {', '.join(REWARDS)}")
    return REWARDS[name](**settings)
