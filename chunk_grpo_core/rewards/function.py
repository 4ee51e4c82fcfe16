"""A Python function as a reward, for users of the library.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..method.reward import Fingerprint, RewardBatch, checked_inputs
from ..prompts.example import Example, Prompt

__all__ = ["FunctionReward", "ScoreFunction"]

ScoreFunction = Callable[[Tensor, Sequence[Example]], Any]
"""Pictures (B, H, W, 3) in 0..1 and B examples -> B numbers: a tensor, an array, a list. The prompt
of an example is ``example.text``, what its file says besides is ``example.metadata``. None, NaN or
infinity stands for a picture that could not be scored."""


class FunctionReward:
    """A function as a reward.

    Example:
        >>> def red(images, examples):
        ...     return images[..., 0].mean((1, 2))
        >>> reward = FunctionReward(red, name="red")
    """

    def __init__(
        self,
        function: ScoreFunction,
        *,
        name: str,
        groupwise: bool = False,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        """Wrap.

        Args:
            function: Called with pictures that are finite. Raise
                :class:`~chunk_grpo_core.method.reward.RewardFailed` where nothing can be scored.
            name: For records and plots.
            groupwise: Call the function once for each example of the batch, with all its pictures,
                so that it may rank them. The trainer scores whole groups.
            fingerprint: What its scores depend on, a version for example; by default where the
                function is defined.
        """
        self.function = function
        self.name = name
        self.groupwise = groupwise
        module = getattr(function, "__module__", None) or type(function).__module__
        title = getattr(function, "__qualname__", None) or type(function).__qualname__
        self.fingerprint: Fingerprint = fingerprint or {"function": f"{module}.{title}"}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`.

        Raises:
            ValueError: The function did not give one number for each picture.
        """
        images, examples = checked_inputs(images, examples)
        finite = torch.isfinite(images).flatten(1).all(1)
        groups: dict[str, list[int]] = {}
        for index, example in enumerate(examples):
            if finite[index]:
                groups.setdefault(example.key if self.groupwise else "", []).append(index)
        values = torch.full((len(images),), torch.nan)
        for group in groups.values():
            scores = self.function(images[group], [examples[index] for index in group])
            values[group] = self._checked(scores, len(group))
        return RewardBatch.of(values)

    def _checked(self, scores: Any, count: int) -> Tensor:
        """Scores as float32 (count,), NaN where there is none."""
        if isinstance(scores, (list, tuple)):
            scores = [float("nan") if value is None else value for value in scores]
        try:
            values = torch.as_tensor(scores).detach().to("cpu", torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"reward {self.name} gave {type(scores).__name__}; its function must give one "
                f"number for each picture ({error})"
            ) from error
        if values.shape != (count,):
            raise ValueError(
                f"reward {self.name} gave scores of shape {tuple(values.shape)} for {count} "
                f"pictures; its function must give shape ({count},)"
            )
        return values
