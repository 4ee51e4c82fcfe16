"""What a family says of one of diffusers' pipelines, as data.

Legend: B samples, L text tokens, n image tokens, ``*latent`` the form in which the pipeline steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .form import Form
from .guidance import Guidance
from .model import PipelineModel
from .scaling import Scaling

__all__ = [
    "Call",
    "PipelineEntry",
    "Text",
    "in_blocks",
    "linear_mu",
    "linspace",
    "positions",
    "text_of",
]

Text = dict[str, Tensor]
"""What a transformer reads of one caption: its argument, or a name that ``inputs`` knows, -> tensor
(1, ...). Floating-point tensors are brought to the transformer's type."""


Settings = Mapping[str, Any]
"""Settings of a part of a pipeline, as in its file."""


@dataclass(frozen=True)
class Call:
    """What one call of the transformer is made of."""

    latents: Tensor
    """(B, *latent), in the transformer's type."""
    time: Tensor
    """(B,), float32, in the transformer's own units."""
    text: Text
    """With B samples."""
    rows: int
    """Rows of image tokens."""
    columns: int
    """Columns of image tokens."""
    guidance: float
    """What the user set."""

    def ones(self) -> Tensor:
        """(B,), float32."""
        return torch.ones_like(self.time)


def text_of(**parts: Tensor | None) -> Text:
    """What a pipeline's ``encode_prompt`` gives, without what it gives as None."""
    return {name: part for name, part in parts.items() if part is not None}


def linspace(steps: int) -> list[float]:
    """Even levels from 1 to 1 / steps, which most pipelines hand to their scheduler."""
    return torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).tolist()


def linear_mu(most_tokens: int = 4096, most: float = 1.15) -> Callable[..., float]:
    """The shift that is linear in the number of tokens, with a pipeline's own defaults."""

    def mu(
        tokens: int, steps: int, scheduler: Mapping[str, Any], index: Mapping[str, Any]
    ) -> float:
        first = scheduler.get("base_image_seq_len", 256)
        last = scheduler.get("max_image_seq_len", most_tokens)
        low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", most)
        slope = (high - low) / (last - first)
        return tokens * slope + low - slope * first

    return mu


def positions(call: Call, axes: int = 3) -> Tensor:
    """Positions (0, row, column, 0, ...) of image tokens, float32, (n, axes)."""
    ids = torch.zeros(call.rows, call.columns, axes, device=call.latents.device)
    ids[..., 1] = torch.arange(call.rows, device=ids.device)[:, None]
    ids[..., 2] = torch.arange(call.columns, device=ids.device)[None, :]
    return ids.reshape(-1, axes)


def in_blocks(blocks: str, attention: str, mlp: str) -> dict[str, str]:
    """LoRA targets by regular expressions.

    Args:
        blocks: Whole names of blocks.
        attention: Names of the linear layers of attention, from the block on.
        mlp: Those of its MLPs.
    """
    return {
        "attention": rf"({blocks})\.({attention})",
        "attention+mlp": rf"({blocks})\.({attention}|{mlp})",
        "all-linear": rf"({blocks})\..+",
    }


def _text_pipe(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    return kind.from_pretrained(
        folder, transformer=None, vae=None, torch_dtype=dtype, local_files_only=True
    )


@dataclass(frozen=True, kw_only=True)
class PipelineEntry:
    """How a pipeline calls its transformer, and what surrounds the call.

    A test records the pipeline itself, and holds every entry to it.
    """

    pipeline: str
    """Class in diffusers."""
    since: str
    """First version of diffusers that runs the model as this entry says."""
    transformer: str
    """Class in diffusers."""
    vae: str
    """Class in diffusers."""
    encode: Callable[[Any, str, PipelineModel], Text]
    """Pipeline with its text encoders, caption, settings -> what the transformer reads."""
    text_pipe: Callable[[Any, Path, torch.dtype], Any] = _text_pipe
    """Class, folder and type -> the pipeline with its text encoders alone."""
    inputs: Callable[[Call], dict[str, Any]]
    """Arguments of the transformer."""
    form: Form
    """Form of the latents."""
    scaling: Scaling
    """Kind of VAE."""
    blocks: tuple[str, ...]
    """Names of the transformer's lists of blocks, which are equal inside a list."""
    targets: Mapping[str, str]
    """See :class:`~..diffusers_policy.DiffusersPolicy`."""
    time: tuple[float, float] = (1.0, 0.0)
    """The transformer's time is the first number times t plus the second."""
    sign: float = 1.0
    """-1 where the transformer predicts data - noise."""
    output: Callable[[Any, Call], Tensor] = lambda out, call: out
    """First output of the transformer -> (B, *latent)."""
    guidance: Guidance | None = Guidance()
    """Formula of guidance with a negative prompt; None where guidance is an input of the
    transformer, or there is none."""
    sigmas: Callable[[int], list[float] | None] = linspace
    """Steps -> levels that the pipeline hands to its scheduler before they are shifted."""
    mu: Callable[..., float] = field(default_factory=linear_mu)
    """Tokens, steps, settings of the scheduler and of the pipeline -> mu of a dynamic shift."""
    scheduler: Mapping[str, Any]
    """Settings of the scheduler that the family is published with, for a configuration that is read
    where the model is not."""
    pixels: Callable[[Mapping[str, Any]], int] = lambda vae: (
        2 ** (len(vae["block_out_channels"]) - 1)
    )
    """Settings of the VAE -> pixels along one side of a latent pixel."""
    side: int = 1
    """Rows and columns of tokens are multiples of this."""
    published_pixels: int = 8
    """That number of the published model."""
