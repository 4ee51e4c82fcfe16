"""What is rewarded: the tiny world, and a second one, so that no recipe wins by fitting one toy.

whole   the tiny world's reward: five attributes and cleanliness
form    shape, size and count alone: colours do not count, and dirt costs nothing, so that nothing
        but the recipe itself keeps the pictures clean
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from chunk_grpo_core.method.reward import Fingerprint, Reward, RewardBatch
from chunk_grpo_core.models.tiny.reward import TinyWorldReward
from chunk_grpo_core.prompts.example import Prompt

__all__ = ["FORM", "FORM_WEIGHTS", "WORLDS", "ScoresReward"]

FORM_WEIGHTS = {"shape": 0.4, "size": 0.3, "count": 0.3}


@dataclass(frozen=True)
class ScoresReward:
    """Implements :class:`chunk_grpo_core.method.reward.Reward` with some of the world's scores."""

    name: str
    weights: Mapping[str, float]
    """Score of the tiny world -> its weight."""

    @property
    def fingerprint(self) -> Fingerprint:
        """The weights of the scores."""
        return self.weights

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """Judge B pictures; extras are those of the tiny world, and its reward as ``whole``."""
        whole = TinyWorldReward().score(images, examples)
        terms = [weight * whole.extras[name] for name, weight in self.weights.items()]
        return RewardBatch.of(sum(terms[1:], terms[0]), whole=whole.values, **whole.extras)


FORM = ScoresReward("tiny_world_form", FORM_WEIGHTS)
WORLDS: dict[str, Reward] = {"whole": TinyWorldReward(), "form": FORM}
