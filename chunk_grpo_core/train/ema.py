"""Exponential moving average of the adapter: smoother weights than those of the last update.

d_n = min((1 + n) / (10 + n), decay)                   warm-up as in Flow-GRPO's code
shadow <- d_n * shadow + (1 - d_n) * weights           after optimiser step n, counted from 0

Without the warm-up a run shorter than the average's memory would keep most of the untrained
weights. With it the average spans about the last tenth of the updates until ``decay`` is reached:
of weights that grow linearly it has exactly 0.9 after any number of updates, since

    d_n = (1 + n) / (10 + n)  keeps  shadow = 0.9 (n + 1)  if the weights are n + 1 after update n,

and more once ``decay`` holds. Dividing by 1 - decay^n, as Adam does, would leave half of them,
because early on it gives the plain mean of all weights so far. ``docs/units.md`` has a table.
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
            decay: In [0, 1), reached by warm-up; 0.99 remembers about 100 updates.
        """
        self._parameters, self.decay = list(parameters), decay
        self._shadow = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Take the present values in.

        Args:
            number: How many updates the run has done before; fixes the warm-up's decay.
        """
        decay = min((1 + number) / (10 + number), self.decay)
        for shadow, parameter in zip(self._shadow, self._parameters, strict=True):
            shadow.lerp_(parameter, 1.0 - decay)

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
