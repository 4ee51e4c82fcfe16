"""The policy that samples, where it is not the newest one but a slow average of it.

    old <- decay * old + (1 - decay) * weights        after every iteration

DiffusionNFT (arXiv 2509.16117) samples with such an average and pulls the newest weights along its
tangent; a group is then never older than the policy it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["OldPolicy"]

_PREFIX = "old."


class OldPolicy:
    """The average of an adapter's parameters, or the parameters themselves."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float | None) -> None:
        """Start at the parameters' present values.

        Args:
            parameters: The adapter's, always in the same order.
            decay: Part of the average that an iteration keeps; None if the newest weights sample.
        """
        self._parameters, self._decay = list(parameters), decay
        is_kept = decay is not None
        self._average = [p.detach().clone() for p in self._parameters] if is_kept else []

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside this context the adapter has the weights that sample."""
        if self._decay is None:
            yield
            return
        newest = [parameter.detach().clone() for parameter in self._parameters]
        self._set(self._average)
        try:
            yield
        finally:
            self._set(newest)

    @torch.no_grad()
    def take(self) -> None:
        """Take the newest weights in, at the end of an iteration."""
        for average, parameter in zip(self._average, self._parameters, strict=False):
            average.lerp_(parameter, 1.0 - (self._decay or 0.0))

    def tensors(self) -> dict[str, Tensor]:
        """Copies for a checkpoint, CPU; none if the newest weights sample."""
        return {f"{_PREFIX}{i}": old.to("cpu", copy=True) for i, old in enumerate(self._average)}

    def restore(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read what :meth:`tensors` gave; returns what is not of it.

        Raises:
            ValueError: The checkpoint has no average, or one of another adapter.
        """
        names = [f"{_PREFIX}{i}" for i in range(len(self._average))]
        if {name for name in tensors if name.startswith(_PREFIX)} != set(names):
            raise ValueError(
                "the checkpoint has not the averaged weights that sample; resume with the "
                "forward.old that the run was started with"
            )
        for name, old in zip(names, self._average, strict=True):
            old.copy_(tensors[name])
        return {name: value for name, value in tensors.items() if name not in names}

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
