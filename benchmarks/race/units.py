"""Count the work of a training in units, whatever its algorithm.

A unit is one sample through the transformer without gradients; a sample with gradients is three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from chunk_grpo_core.method.policy import Policy, Velocity
from chunk_grpo_core.prompts.example import Prompt

__all__ = ["CountedPolicy"]

T = TypeVar("T")
WITH_GRADIENT = 3
"""A forward pass, and a backward pass of about twice its work."""


class CountedPolicy:
    """A policy that counts what goes through its velocity; otherwise it is the policy it wraps."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.units = 0
        """Counted so far."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def encode(self, images: Tensor) -> Tensor | None:
        """See :class:`~chunk_grpo_core.method.policy.PictureEncoder`."""
        return self._policy.encode(images)  # type: ignore[attr-defined]

    def run(self, work: Callable[[Velocity], T]) -> T:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""

        def counted(velocity: Velocity) -> Velocity:
            def count(x_t: Tensor, t: Any, example: Prompt) -> Tensor:
                self.units += len(x_t) * (WITH_GRADIENT if torch.is_grad_enabled() else 1)
                return velocity(x_t, t, example)

            return count

        return self._policy.run(lambda velocity: work(counted(velocity)))
