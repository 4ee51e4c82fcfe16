"""CONDITIONING as training needs it: free of inference tensors, one prompt's entries at a time.

ComfyUI averages the entries of one CONDITIONING, so prompts must never share a call. All prompts
are processed together, once, and their entries told apart by a tag.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .autograd import alias

__all__ = ["Conditioning", "select", "tagged"]

#: ComfyUI's CONDITIONING: a list of [tensor, dict].
Conditioning = list[list[Any]]

_TAG = "chunk_grpo_prompt"
_UNSUPPORTED = ("control", "gligen", "hooks")


def _normal(value: Any) -> Any:
    """Rebuild conditioning so that no inference tensor is left in it; autograd may save it."""
    if isinstance(value, Tensor):
        return alias(value) if value.is_inference() else value.detach()
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_normal(item) for item in value)
    return value


def tagged(conditioning: Conditioning, prompt: str) -> Conditioning:
    """Rebuild the conditioning of one prompt and mark every entry as that prompt's.

    The tensors stay where they are in memory; a set of prompts can be large.

    Raises:
        ValueError: It has a ControlNet, GLIGEN or hooks, through which nobody has checked the
            gradients.
    """
    for _, extras in conditioning:
        found = [key for key in _UNSUPPORTED if extras.get(key) is not None]
        if found:
            raise ValueError(
                f"the conditioning of {prompt!r} has {', '.join(found)}; training takes plain "
                "text conditioning"
            )
    with torch.inference_mode(False):
        return [[_normal(t), {**_normal(extras), _TAG: prompt}] for t, extras in conditioning]


def select(processed: list[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """The entries of one prompt out of a guider's processed conditioning."""
    return [entry for entry in processed if entry.get(_TAG) == prompt]
