"""The shape of a LATENT as a MODEL wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sample
from comfy.model_patcher import ModelPatcher

from ...chunk_grpo_core.settings.declared import shortened

__all__ = ["latent_shape_of", "samples_of"]

_LATENT_OPTIONS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""What newer ComfyUI notes on an empty LATENT, so that every model gets its own size."""


def samples_of(latent: object, name: str) -> Any:
    """The tensor of a LATENT; a prompt of the API may hold anything where a link belongs.

    Args:
        latent: What the input was given.
        name: That of the input.

    Raises:
        ValueError: It is no LATENT.
    """
    if not isinstance(latent, Mapping) or "samples" not in latent:
        raise ValueError(
            f"{name} is {shortened(latent)}, which is no LATENT; link a node that gives one, such "
            "as VAE Encode or EmptySD3LatentImage"
        )
    return latent["samples"]


def latent_shape_of(model: ModelPatcher, latent: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of one latent of an (empty) LATENT as ``model`` wants it, without the batch axis.

    Raises:
        ValueError: The LATENT belongs to a model with other latents; it is no single tensor; or
            it is no LATENT.
    """
    form = model.get_model_object("latent_format")
    samples = samples_of(latent, "latent")
    if getattr(samples, "is_nested", False):
        raise ValueError(
            "the LATENT holds several tensors (picture and sound); training takes latents of "
            "pictures"
        )
    options = {name: latent[name] for name in _LATENT_OPTIONS if latent.get(name) is not None}
    samples = comfy.sample.fix_empty_latent_channels(model, samples, **options)
    axes = form.latent_dimensions + 2
    if samples.shape[1] != form.latent_channels or samples.ndim != axes:
        raise ValueError(
            f"the LATENT has {samples.shape[1]} channels and {samples.ndim} axes; this MODEL needs "
            f"{form.latent_channels} channels and {axes} axes. Connect an empty latent, for "
            "example from EmptySD3LatentImage"
        )
    return tuple(samples.shape[1:])
