"""An average of an adapter's weights: kept beside them, saved with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage", "set_weights"]


class WeightAverage:
    """Begins at the present weights; they are not touched."""

    def __init__(self, parameters: Sequence[nn.Parameter], prefix: str) -> None:
        """Copy the weights.

        Args:
            parameters: What is averaged, always in the same order.
            prefix: Begins the names of its tensors in a checkpoint.
        """
        self._parameters = list(parameters)
        self.values = [parameter.detach().clone() for parameter in parameters]
        self.names = [f"{prefix}{number}" for number in range(len(self.values))]

    @torch.no_grad()
    def take(self, share: float) -> None:
        """Move towards the present weights by a share of the way."""
        for average, parameter in zip(self.values, self._parameters, strict=True):
            average.lerp_(parameter, share)

    def tensors(self) -> dict[str, Tensor]:
        """Copies for a checkpoint, CPU."""
        copies = (value.to("cpu", copy=True) for value in self.values)
        return dict(zip(self.names, copies, strict=True))

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Read what :meth:`tensors` gave; all names must be there."""
        for name, value in zip(self.names, self.values, strict=True):
            value.copy_(tensors[name])


@torch.no_grad()
def set_weights(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Give parameters these values; optimisers keep working."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
