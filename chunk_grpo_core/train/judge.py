"""The reward of a training: checked against its settings, and with the model if it asks for one."""

from __future__ import annotations

from ..method.advantage import check_scale
from ..method.policy import Policy
from ..method.policy_reward import bound, needs_policy
from ..method.reward import Reward, is_scale_free
from .batch_limit import BatchLimit
from .config import TrainConfig

__all__ = ["judge_of"]


def judge_of(reward: Reward, policy: Policy, config: TrainConfig, limit: BatchLimit) -> Reward:
    """The reward as a training asks it.

    Args:
        reward: What was loaded.
        policy: What is trained.
        config: All settings.
        limit: Samples that fit into memory at once.

    Raises:
        ValueError: The settings do not suit the reward, or the policy cannot judge.
    """
    check_scale(config.advantage, is_scale_free(reward))
    if config.score_while_sampling and needs_policy(reward):
        raise ValueError(
            f"score_while_sampling is on, but the reward {reward.name} asks the model that samples "
            "meanwhile; turn it off"
        )
    return bound(reward, policy, limit.fit)
