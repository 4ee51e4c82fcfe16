"""Exponential moving average of the adapter: smoother weights than those of the last update.

shadow <- decay * shadow + (1 - decay) * weights       after every optimiser step
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Ema"]


class Ema:
    """The average of some parameters; they are not touched before :meth:`apply`."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Start at the parameters' present values.

        Args:
            parameters: What is averaged, always in the same order.
            decay: In [0, 1); 0.99 remembers about 100 updates.
        """
        self._parameters, self.decay = list(parameters), decay
        self._shadow = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present values in."""
        for shadow, parameter in zip(self._shadow, self._parameters, strict=True):
            shadow.lerp_(parameter, 1.0 - self.decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Set the parameters to the average."""
        for shadow, parameter in zip(self._shadow, self._parameters, strict=True):
            parameter.copy_(shadow)

    def tensors(self) -> dict[str, Tensor]:
        """Copies for a checkpoint, CPU."""
        return {f"ema.{i}": shadow.to("cpu", copy=True) for i, shadow in enumerate(self._shadow)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Read what :meth:`tensors` gave.

        Raises:
            ValueError: The checkpoint has no average, or one of other parameters.
        """
        if set(tensors) != {f"ema.{i}" for i in range(len(self._shadow))}:
            raise ValueError(
                f"the checkpoint has {len(tensors)} averaged tensors, {len(self._shadow)} are "
                "needed; resume with the ema_decay the run was started with"
            )
        for i, shadow in enumerate(self._shadow):
            shadow.copy_(tensors[f"ema.{i}"])
