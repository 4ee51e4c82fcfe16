"""Patches that set the shift of a MODEL: whether they tell it the times that it was made for.

ModelSamplingSD3 counts times up to 1000, ModelSamplingAuraFlow and ModelSamplingFlux up to 1. A
patch of the wrong kind runs without an error and spoils every picture.
"""

from __future__ import annotations

import logging

import comfy.model_base
import torch
from comfy.model_patcher import ModelPatcher

__all__ = ["shift_doubt", "warn_of_shift"]

logger = logging.getLogger(__name__)

_SIGMAS = (0.25, 0.5, 1.0)
_NODES = {
    1.0: "ModelSamplingFlux (FLUX) or ModelSamplingAuraFlow (others)",
    1000.0: "ModelSamplingSD3",
}


def shift_doubt(model: ModelPatcher) -> str:
    """What is doubtful about the shift patch on a MODEL; empty if nothing is.

    Args:
        model: A flow-matching MODEL.
    """
    patched = model.object_patches.get("model_sampling")
    kind = getattr(model.model, "model_type", None)
    if patched is None or kind is None:
        return ""
    own = comfy.model_base.model_sampling(model.model.model_config, kind)
    sigmas = torch.tensor(_SIGMAS)
    told, wanted = patched.timestep(sigmas), own.timestep(sigmas)
    if torch.allclose(told.float(), wanted.float(), rtol=1e-3):
        return ""
    most = float(wanted[-1])
    instead = f", or use {_NODES[most]} instead" if most in _NODES else ""
    return (
        f"the shift patch on this MODEL tells it times up to {float(told[-1]):g}, but "
        f"{type(model.model).__name__} was made for times up to {most:g}, so its pictures are "
        f"spoilt; take the patch off{instead}"
    )


def warn_of_shift(model: ModelPatcher) -> None:
    """Say in the log what is doubtful."""
    if doubt := shift_doubt(model):
        logger.warning("%s", doubt)
