"""A Python function as a reward, for users of the library.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..method.reward import Fingerprint, Metadata, RewardBatch, check_images

__all__ = ["FunctionReward", "ScoreFunction"]

ScoreFunction = Callable[[Tensor, Sequence[str], Sequence[Metadata]], Any]
"""Pictures (B, H, W, 3) in 0..1, B prompts, B mappings -> B numbers: a tensor, an array, a list.
None, NaN or infinity stands for a picture that could not be scored."""


class FunctionReward:
    """A function as a reward.

    Example:
        >>> reward = FunctionReward(lambda images, *_: images[..., 0].mean((1, 2)), name="red")
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
            groupwise: Call the function once for each prompt of the batch, with all its pictures,
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

    def score(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Metadata] | None = None,
    ) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`.

        Raises:
            ValueError: The function did not give one number for each picture.
        """
        images = check_images(images, prompts, metadata)
        rows = metadata or [{}] * len(prompts)
        finite = torch.isfinite(images).flatten(1).all(1)
        groups: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            if finite[index]:
                groups.setdefault(prompt if self.groupwise else "", []).append(index)
        values = torch.full((len(images),), torch.nan)
        for group in groups.values():
            found = self.function(
                images[group], [prompts[i] for i in group], [rows[i] for i in group]
            )
            values[group] = self._checked(found, len(group))
        return RewardBatch.of(values)

    def _checked(self, found: Any, count: int) -> Tensor:
        """Scores as float32 (count,), NaN where there is none."""
        if isinstance(found, (list, tuple)):
            found = [float("nan") if value is None else value for value in found]
        try:
            values = torch.as_tensor(found).detach().to("cpu", torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"reward {self.name} gave {type(found).__name__}; its function must give one "
                f"number for each picture ({error})"
            ) from error
        if values.shape != (count,):
            raise ValueError(
                f"reward {self.name} gave scores of shape {tuple(values.shape)} for {count} "
                f"pictures; its function must give shape ({count},)"
            )
        return values
