"""The policy that samples, where it is not the newest one but a slow average of it.

    old <- decay * old + (1 - decay) * weights        after every iteration

DiffusionNFT (arXiv 2509.16117) samples with such an average and pulls the newest weights along its
tangent; a group is then never older than the policy it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from .weight_average import WeightAverage, set_weights

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
        averaged = [] if decay is None else self._parameters
        self._average = WeightAverage(averaged, _PREFIX)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside this context the adapter has the weights that sample."""
        if self._decay is None:
            yield
            return
        newest = [parameter.detach().clone() for parameter in self._parameters]
        set_weights(self._parameters, self._average.values)
        try:
            yield
        finally:
            set_weights(self._parameters, newest)

    def take(self) -> None:
        """Take the newest weights in, at the end of an iteration."""
        if self._decay is not None:
            self._average.take(1.0 - self._decay)

    def tensors(self) -> dict[str, Tensor]:
        """Copies for a checkpoint, CPU; none if the newest weights sample."""
        return self._average.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read what :meth:`tensors` gave; returns what is not of it.

        Raises:
            ValueError: The checkpoint has no average, or one of another adapter.
        """
        names = self._average.names
        if {name for name in tensors if name.startswith(_PREFIX)} != set(names):
            raise ValueError(
                "the checkpoint has not the averaged weights that sample; resume with the "
                "forward.old that the run was started with"
            )
        self._average.restore(tensors)
        return {name: value for name, value in tensors.items() if name not in names}
