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

from torch import Tensor, nn

from .weight_average import WeightAverage, set_weights

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
        self._average = WeightAverage(self._parameters, "ema.")

    def update(self, number: int) -> None:
        """Take the present values in.

        Args:
            number: How many updates the run has done before; fixes the warm-up's decay.
        """
        self._average.take(1.0 - min((1 + number) / (10 + number), self.decay))

    def apply(self) -> None:
        """Set the parameters to the average."""
        set_weights(self._parameters, self._average.values)

    def tensors(self) -> dict[str, Tensor]:
        """Copies for a checkpoint, CPU."""
        return self._average.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Read what :meth:`tensors` gave.

        Raises:
            ValueError: The checkpoint has no average, or one of other parameters.
        """
        names = self._average.names
        if set(tensors) != set(names):
            raise ValueError(
                f"the checkpoint has {len(tensors)} averaged tensors, {len(names)} are "
                "needed; resume with the ema_decay the run was started with"
            )
        self._average.restore(tensors)
