"""A transformer that is called as its pipeline calls it, with a LoRA in it.

Legend: B samples, ``*latent`` the form in which the pipeline steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..diffusers_policy import DiffusersPolicy
from .entry import Call, PipelineEntry, Text

__all__ = ["Conditioning", "PipelinePolicy"]

Conditioning = tuple[Text, Text | None]
"""What the transformer reads of the prompt, and of the negative prompt if guidance is on."""


class PipelinePolicy(DiffusersPolicy[Conditioning]):
    """A transformer of one of diffusers' pipelines."""

    captions = 16

    def __init__(
        self,
        *,
        entry: PipelineEntry,
        rows: int,
        columns: int,
        guidance: float = 0.0,
        **shared: Any,
    ) -> None:
        """Freeze the transformer and put a fresh LoRA on it.

        Args:
            entry: How the pipeline calls it.
            rows: Rows of image tokens.
            columns: Columns of image tokens.
            guidance: Scale of guidance.
            **shared: See :class:`~..diffusers_policy.DiffusersPolicy`.
        """
        self._entry, self._rows, self._columns = entry, rows, columns
        self._guidance, self._is_guided = guidance, True
        self.blocks, self.targets = entry.blocks, entry.targets
        super().__init__(**shared)

    @contextmanager
    def unguided(self) -> Iterator[None]:
        """See :class:`~chunk_grpo_core.method.policy.Guided`."""
        before, self._is_guided = self._is_guided, False
        try:
            yield
        finally:
            self._is_guided = before

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See :class:`~..diffusers_policy.DiffusersPolicy`."""
        prompt, negative = conditioning
        v_t = self._branch(x_t, t, prompt)
        if negative is None or self._entry.guidance is None or not self._is_guided:
            return v_t
        return self._entry.guidance.combine(v_t, self._branch(x_t, t, negative), self._guidance)

    def _branch(self, x_t: Tensor, t: Tensor, text: Text) -> Tensor:
        transformer: Any = self.transformer
        scale, offset = self._entry.time

        def for_batch(part: Tensor) -> Tensor:
            part = part.to(self._dtype) if part.is_floating_point() else part
            return part.expand(len(x_t), *part.shape[1:])

        call = Call(
            latents=x_t.to(self._dtype),
            time=scale * t + offset,
            text={name: for_batch(part) for name, part in text.items()},
            rows=self._rows,
            columns=self._columns,
            guidance=self._guidance,
        )
        out = transformer(**self._entry.inputs(call), return_dict=False)[0]
        return self._entry.sign * self._entry.output(out, call).float()
