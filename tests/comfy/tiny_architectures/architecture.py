"""What a tiny random model of an architecture is made of. Imported without ComfyUI, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Extras = Callable[[torch.Generator], dict[str, Any]]

TOKENS = 6
"""Tokens of a prompt's text features."""


def _none(generator: torch.Generator) -> dict[str, Any]:
    return {}


def pooled(width: int) -> Extras:
    return lambda generator: {"pooled_output": torch.randn(1, width, generator=generator)}


def no_pooled(generator: torch.Generator) -> dict[str, Any]:
    return {"pooled_output": None}  # FLUX.2 and Chroma of older ComfyUI insist on the key


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of one tiny model, and what it wants to be given."""

    kind: str
    """Class in comfy.supported_models."""
    unet_config: Mapping[str, Any]
    latent: tuple[int, ...] = (16, 8, 8)
    """One latent as the model wants it."""
    context: int = 32
    """Width of the text features."""
    extras: Extras = field(default=_none)
    """What else stands in a CONDITIONING of it."""


FLUX = {
    "patch_size": 2, "in_channels": 16, "out_channels": 16, "vec_in_dim": 16,
    "context_in_dim": 32, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True,
    "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
"""What FLUX.1 and its relatives have in common."""
