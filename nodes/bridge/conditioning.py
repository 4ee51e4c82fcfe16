"""CONDITIONING as training needs it: free of inference tensors, one prompt at a time.

ComfyUI averages the entries of one CONDITIONING, so prompts must never share a call.
"""

from __future__ import annotations

from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from .autograd import alias

__all__ = ["Conditioning", "Processed", "processed", "trainable"]

#: ComfyUI's CONDITIONING: a list of [tensor, dict].
Conditioning = list[list[Any]]

#: What a guider holds while it samples: "positive" and "negative" -> entries for the model.
Processed = dict[str, list[dict[str, Any]]]

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


def trainable(conditioning: Conditioning, name: str) -> Conditioning:
    """Rebuild the conditioning of one prompt so that autograd can work with it.

    The tensors stay where they are in memory; a set of prompts can be large.

    Args:
        conditioning: As any node gives it.
        name: The prompt, for the message.

    Raises:
        ValueError: It is empty; or it has a ControlNet, GLIGEN or hooks, through which nobody has
            checked the gradients.
    """
    if not conditioning:
        raise ValueError(f"the conditioning of {name!r} is empty")
    for _, extras in conditioning:
        unsupported = [key for key in _UNSUPPORTED if extras.get(key) is not None]
        if unsupported:
            raise ValueError(
                f"the conditioning of {name!r} has {', '.join(unsupported)}; training takes plain "
                "text conditioning"
            )
    with torch.inference_mode(False):
        return [[_normal(tensor), _normal(extras)] for tensor, extras in conditioning]


@torch.no_grad()
def processed(model: Any, noise: Tensor, conditioning: dict[str, Conditioning]) -> Processed:
    """Turn one prompt's conditioning into what the model takes, as ComfyUI does before sampling.

    Args:
        model: The loaded ``BaseModel``.
        noise: Latents of the largest batch, on the model's device; only their shape matters.
        conditioning: "positive", and "negative" with guidance.
    """
    entries = {key: comfy.sampler_helpers.convert_cond(c) for key, c in conditioning.items()}
    empty = torch.zeros_like(noise)
    return comfy.samplers.process_conds(model, noise, entries, noise.device, empty, None, 0)
