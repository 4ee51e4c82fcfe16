"""CONDITIONING as training needs it: free of inference tensors, one prompt at a time.

ComfyUI averages the entries of one CONDITIONING, so prompts must never share a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from .autograd import alias

__all__ = [
    "REFERENCE",
    "Conditioning",
    "Processed",
    "check_guided",
    "check_noticed",
    "check_references",
    "processed",
    "trainable",
]

#: ComfyUI's CONDITIONING: a list of [tensor, dict].
Conditioning = list[list[Any]]

#: What a guider holds while it samples: "positive" and "negative" -> entries for the model.
Processed = dict[str, list[dict[str, Any]]]

REFERENCE = "reference_latents"
"""Where ComfyUI keeps encoded pictures that an edit model looks at: a list of tensors."""

_UNSUPPORTED = (
    "control", "gligen", "hooks", "concat_latent_image", "concat_mask",
    "clip_vision_output", "unclip_conditioning",
)  # fmt: skip


def check_guided(cfg: float, *, has_negative: bool) -> None:
    """Make sure that a scale of classifier-free guidance is one, and has what it leads away from.

    Raises:
        ValueError: It is out of range, or above 1 without negative conditioning.
    """
    if not 1.0 <= cfg <= 100.0:
        raise ValueError(f"cfg is {cfg}; it must be a number from 1 to 100")
    if cfg != 1.0 and not has_negative:
        raise ValueError(f"cfg is {cfg}; connect negative conditioning, or set cfg to 1")


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
        ValueError: It is empty; or it has more than text and reference latents (a ControlNet,
            GLIGEN, hooks, a picture beside the noise, CLIP vision), through which nobody
            has checked the gradients.
    """
    if not conditioning:
        raise ValueError(f"the conditioning of {name!r} is empty")
    for _, extras in conditioning:
        unsupported = [key for key in _UNSUPPORTED if extras.get(key) is not None]
        if unsupported:
            raise ValueError(
                f"the conditioning of {name!r} has {', '.join(unsupported)}; training takes text, "
                "and reference latents"
            )
    with torch.inference_mode(False):
        return [[_normal(tensor), _normal(extras)] for tensor, extras in conditioning]


def check_references(
    positive: Mapping[str, Conditioning], negative: Conditioning | None, form: Any
) -> None:
    """Make sure that reference latents belong to the MODEL and do not stand in ``negative`` alone.

    Args:
        positive: Prompt -> its conditioning.
        negative: Conditioning of the negative prompt, if there is guidance.
        form: The MODEL's ``latent_format``.

    Raises:
        ValueError: They do not, or do.
    """
    of_prompts = [latent for c in positive.values() for latent in _references(c)]
    if negative is not None and _references(negative) and not of_prompts:
        raise ValueError(
            "negative has reference latents, and the prompts have none; connect the picture to "
            "reference of Prompt Set, too, or take it out of negative"
        )
    for latent in (*of_prompts, *_references(negative or [])):
        if latent.shape[1] != form.latent_channels:
            raise _of_another_vae(f"{latent.shape[1]} channels", f"{form.latent_channels}")
        if latent.ndim != form.latent_dimensions + 2:
            axes = "frames, rows and columns" if form.latent_dimensions == 3 else "rows and columns"
            raise _of_another_vae(f"the shape {tuple(latent.shape)}", f"{axes} of one picture")
        if form.latent_dimensions == 3 and latent.shape[2] != 1:
            raise ValueError(
                f"reference holds {latent.shape[2]} frames; it must be the LATENT of one picture"
            )
        if not bool(latent.isfinite().all()):
            raise ValueError("reference holds NaN or infinity; look at its picture and its VAE")


def _of_another_vae(found: str, wanted: str) -> ValueError:
    return ValueError(
        f"reference has {found}, and this MODEL needs {wanted}; encode the picture with the VAE "
        "that belongs to the MODEL"
    )


def _references(conditioning: Conditioning) -> list[Tensor]:
    return [latent for _, extras in conditioning for latent in extras.get(REFERENCE) or ()]


@torch.no_grad()
def processed(model: Any, noise: Tensor, conditioning: dict[str, Conditioning]) -> Processed:
    """Turn one prompt's conditioning into what the model takes, as ComfyUI does before sampling.

    Args:
        model: The loaded ``BaseModel``.
        noise: Latents of the largest batch, on the model's device; only their shape matters.
        conditioning: "positive", and "negative" with guidance.

    Raises:
        ValueError: The MODEL needs a picture beside the noise.
    """
    entries = {key: comfy.sampler_helpers.convert_cond(c) for key, c in conditioning.items()}
    empty = torch.zeros_like(noise)
    made = comfy.samplers.process_conds(model, noise, entries, noise.device, empty, None, 0)
    if any("c_concat" in entry["model_conds"] for each in made.values() for entry in each):
        raise ValueError(
            f"this MODEL ({type(model).__name__}) takes a picture beside the noise (as Fill, "
            "Canny, Depth and inpainting models do), and training has none to give; use the "
            "text-to-image model, or one that takes reference latents"
        )
    return made


@torch.no_grad()
def check_noticed(
    call: Callable[[Tensor, Processed], Tensor],
    model: Any,
    noise: Tensor,
    conditioning: dict[str, Conditioning],
) -> None:
    """Make sure that the MODEL looks at reference latents, by two calls; many models accept them,
    and do not.

    Args:
        call: Latents (1, ...), what :func:`processed` gave -> what the MODEL makes of them.
        model: The loaded ``BaseModel``.
        noise: Latents of the largest batch, on the model's device; only their shape matters.
        conditioning: "positive", and "negative" with guidance.

    Raises:
        ValueError: It does not.
    """
    if not any(map(_references, conditioning.values())):
        return
    without = {
        key: [[words, {**extras, REFERENCE: None}] for words, extras in given]
        for key, given in conditioning.items()
    }
    x = torch.linspace(-1.0, 1.0, noise[0].numel(), device=noise.device).view_as(noise[:1])
    first, second = (call(x, processed(model, noise, given)) for given in (conditioning, without))
    if torch.equal(first, second):
        raise ValueError(
            f"reference is connected, but this MODEL ({type(model).__name__}) takes no notice of "
            "it; use a model that edits pictures (FLUX.1 Kontext, FLUX.2, Qwen-Image-Edit), or "
            "take the link off"
        )
