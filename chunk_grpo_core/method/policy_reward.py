"""Rewards that ask the model that is trained, without its LoRA.

A reward takes pictures and examples. One of this kind needs a model beside them: it says
``needs_policy = True`` and has ``bind``, and whoever has a policy binds it before pictures are
scored (the trainer, an evaluation, an experiment). A combination binds its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from .policy import Policy, Velocity
from .reward import Reward

__all__ = ["Fit", "PolicyReward", "bound", "needs_policy", "units_of_reward", "without_policy"]

Fit = Callable[[Velocity], Velocity]
"""Makes a velocity that takes batches of any size, where gradients are off."""


def as_it_is(velocity: Velocity) -> Velocity:
    """A velocity that gets all samples at once."""
    return velocity


@runtime_checkable
class PolicyReward(Protocol):
    """A reward, or a combination with one, that needs a policy before it can score."""

    @property
    def needs_policy(self) -> bool:
        """True until it is bound."""
        ...

    def bind(self, policy: Policy, fit: Fit) -> Reward:
        """The reward with this policy as its judge; itself stays as it is.

        Its name and its fingerprint are the same as before, so that a run can be compared with its
        record before the model is loaded.

        Args:
            policy: Its adapter is off while it judges. Nothing else may be inside one of its
                phases meanwhile.
            fit: Keeps batches to what fits into memory.

        Raises:
            ValueError: This policy cannot judge.
        """
        ...


def needs_policy(reward: Reward) -> bool:
    """Whether a reward, or a part of a combination, must be bound before it can score."""
    return isinstance(reward, PolicyReward) and reward.needs_policy


def bound(reward: Reward, policy: Policy, fit: Fit = as_it_is) -> Reward:
    """The reward, bound to a policy if it needs one; one that is bound already stays so.

    Raises:
        ValueError: The policy cannot judge.
    """
    if isinstance(reward, PolicyReward) and reward.needs_policy:
        return reward.bind(policy, fit)
    return reward


def without_policy(reward: str) -> ValueError:
    """The error of a reward that must score and has no policy; ``reward`` is its name."""
    return ValueError(
        f"the reward {reward} asks the model that is trained, and there is none here. It scores in "
        "a training and when a LoRA is evaluated (Train LoRA, Evaluate LoRA; chunk-grpo train and "
        "evaluate). To score pictures alone, choose a reward with a network of its own, such as "
        "clipscore"
    )


def units_of_reward(reward: Reward) -> int:
    """Samples that go through the model that is trained for each picture that is scored. Rewards
    that use it say ``units_per_picture``."""
    return int(getattr(reward, "units_per_picture", 0))
