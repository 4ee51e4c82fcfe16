"""The gate for LoRAs: what a file holds, in one form, whoever wrote it, or why it is refused.

Read are plain LoRA layers as this pack, ComfyUI, diffusers, peft, sd-scripts (kohya), musubi-tuner,
OneTrainer (OMI, too), SimpleTuner, ai-toolkit and XLabs name them: A is ``lora_A``, ``lora_down``
or ``lora.down``, B is ``lora_B``, ``lora_up`` or ``lora.up``; module names have a prefix or none,
and dots or underscores. Without an alpha the scale is 1, as it is for ComfyUI and diffusers. Layers
of text encoders are counted and left out. Everything else is refused by name: a LoRA is read whole,
or not at all.

Legend: r rank.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .layers import LoraLayer

__all__ = [
    "LoraContents",
    "check_numbers",
    "read_lora",
    "split_factor_name",
    "split_prefix",
]

log = logging.getLogger(__name__)

#: Longest first: a file of SimpleTuner may begin with two of them.
_PREFIXES = (
    "transformer.base_model.model.",
    "unet.base_model.model.",
    "base_model.model.transformer.",
    "base_model.model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "lora_transformer_",
    "lora_unet__",
    "lora_unet_",
    "lycoris_",
)
_TEXT_ENCODER = re.compile(
    r"lora_(prior_)?te\d*_|text_encoders?(_\d)?\.|(base_model\.model\.)?text_model\."
    r"|lycoris_text_encoder|bundle_emb\.|(clip_[lg]|t5|llama)\."
)
_FACTOR = re.compile(
    r"(?P<module>.+?)(?:"
    r"\.lora_(?P<side>A|B|down|up)(?:\.(?!weight$|bias$)\w+)?(?:\.weight)?"
    r"|[._]lora(?:_linear_layer)?\.(?P<old_side>down|up)\.weight"
    r"|\.(?P<alpha>alpha))"
)
_XLABS = re.compile(
    r"(?:diffusion_model\.)?(?P<block>(?:double|single)_blocks\.\d+)\.processor\."
    r"(?P<layer>(?:qkv|proj)_lora[12]?)\.(?P<side>down|up)\.weight"
)
_XLABS_LAYERS = {
    "qkv_lora1": "img_attn.qkv",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "proj_lora2": "txt_attn.proj",
    "qkv_lora": "linear1_qkv",  # ComfyUI calls the rows of Q, K and V in linear1 so
    "proj_lora": "linear2",
}
_SIDES = {"A": "a", "down": "a", "B": "b", "up": "b"}
#: What else a file of weights may hold, and how to call it.
_OTHER_KINDS = (
    (r"\.dora_scale|\.lora_magnitude_vector", "DoRA, which also trains the length of each row"),
    (r"\.lora_(A|B|down|up)(\.\w+)?\.bias|\.diff_b|\.b_norm", "a trained bias"),
    (r"\.hada_[wt]\d", "LoHa"),
    (r"\.lokr_[wt]\d", "LoKr"),
    (r"\.oft_(blocks|diag)|\.oft_R\.", "OFT or BOFT"),
    (r"\.[ab][12]\.weight", "GLoRA"),
    (r"\.lora_mid\.weight", "a middle factor (LoCon with Tucker decomposition)"),
    (r"\.lora_embedding_[AB]", "a LoRA of an embedding"),
    (r"\.diff|\.set_weight|\.reshape_weight|\.w_norm", "whole changed weights beside the LoRA"),
    (r"\.(weight|bias|scale)", "whole weights: a checkpoint, and not a LoRA"),
)
_COMPUTED = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST = torch.finfo(torch.float32).max
_LARGEST_UPDATE = 1e10
"""Weights of networks are near 1; a training whose LoRA has come here has diverged long before."""
_LONGEST_NAME = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraContents:
    """The layers of a LoRA; none is missing, none is left over."""

    layers: Mapping[str, LoraLayer]
    """Module name without prefix, with the dots or underscores of the file -> layer."""
    prefixes: frozenset[str]
    """Prefixes that the file has, ``""`` for none."""
    text_encoder: int
    """Number of layers of text encoders; they are left out."""


def read_lora(tensors: Mapping[str, Tensor]) -> LoraContents:
    """Take a LoRA apart and check all of it.

    Args:
        tensors: Contents of a file, or a LORA_MODEL of ComfyUI.

    Raises:
        ValueError: It holds more than plain LoRA layers, a layer twice or in part, or a tensor that
            is no factor of a LoRA: NaN, infinite, of whole numbers, of rank 0, all zero.
    """
    by_module: dict[str, dict[str, tuple[str, Tensor]]] = {}
    prefixes, text_layers = set(), set()
    for name, tensor in tensors.items():
        _check_name(name)
        if _TEXT_ENCODER.match(name):
            text_layers.add(_base(name))
            continue
        prefix, module, side = _place(name)
        prefixes.add(prefix)
        sides = by_module.setdefault(module, {})
        if side in sides:
            raise ValueError(
                f"this LoRA gives {module} twice, as {sides[side][0]} and as {name}; "
                "a file must hold one LoRA, in one layout"
            )
        sides[side] = (name, tensor)
    if not by_module:
        raise ValueError(
            f"this LoRA holds {len(text_layers)} layers of text encoders and none of the image "
            "model; only the image model is trained here"
            if text_layers
            else "this LoRA holds nothing"
        )
    layers = {module: _layer(module, sides) for module, sides in by_module.items()}
    if not any(bool(factor.any()) for layer in layers.values() for factor in (layer.a, layer.b)):
        raise ValueError("all numbers of this LoRA are 0: it does nothing and cannot learn")
    if text_layers:
        log.warning(
            "%d layers of text encoders in this LoRA (%s, ...) are left out; its %d layers of the "
            "image model are used",
            len(text_layers),
            min(text_layers),
            len(layers),
        )
    return LoraContents(layers=layers, prefixes=frozenset(prefixes), text_encoder=len(text_layers))


def check_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Check the numbers of a file, whatever kind of weights it holds.

    Raises:
        ValueError: A tensor holds NaN or infinity, or a factor of a LoRA is of whole numbers.
    """
    for name, tensor in tensors.items():
        _check_name(name)
        factor = split_factor_name(name)
        if tensor.is_floating_point() or (factor is not None and factor[1] != "alpha"):
            _check_numbers(name, tensor)


def _check_name(name: str) -> None:
    """Refuse what could not be shown in a message; no program writes it."""
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(
            f"it holds a tensor called {name[:60]!r} ({len(name)} characters), which is no name of "
            "a layer"
        )


def _check_numbers(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} holds numbers of type {kind}; weights must be floating-point numbers "
            "(float32, float16, bfloat16, float8)"
        )
    finite = _computable(tensor).isfinite()
    if not bool(finite.all()):
        raise ValueError(
            f"{name} holds NaN or infinity ({int((~finite).sum())} of {tensor.numel()} numbers); "
            "the training that made it has diverged, or the file is damaged"
        )


def split_prefix(module: str) -> tuple[str, str]:
    """The prefix of a layer's name in a file, ``""`` for none, and the rest."""
    prefix = next((prefix for prefix in _PREFIXES if module.startswith(prefix)), "")
    return prefix, module.removeprefix(prefix)


def split_factor_name(name: str) -> tuple[str, str] | None:
    """The module, with its prefix, and the side (``a``, ``b`` or ``alpha``) that a name stands for;
    None for other names.
    """
    match = _FACTOR.fullmatch(name)
    if match is None:
        return None
    side = match["side"] or match["old_side"]
    return match["module"], _SIDES[side] if side else "alpha"


def _place(name: str) -> tuple[str, str, str]:
    """Prefix, module and side of a tensor."""
    if xlabs := _XLABS.fullmatch(name):
        module = f"{xlabs['block']}.{_XLABS_LAYERS.get(xlabs['layer'], xlabs['layer'])}"
        return "", module, _SIDES[xlabs["side"]]
    factor = split_factor_name(name)
    if factor is None:
        raise ValueError(_refusal(name))
    module, side = factor
    return *split_prefix(module), side


def _refusal(name: str) -> str:
    for pattern, kind in _OTHER_KINDS:
        if re.search(f"(?:{pattern})", name):
            return (
                f"this file holds {kind} ({name}); only plain LoRA layers are read (lora_A and "
                "lora_B, or lora_down and lora_up, and alpha), and leaving a part out would change "
                "what it does"
            )
    return (
        f"this file holds {name}, which is no part of a plain LoRA (lora_A and lora_B, or "
        "lora_down and lora_up, and alpha)"
    )


def _base(name: str) -> str:
    factor = split_factor_name(name)
    return factor[0] if factor else name


def _layer(module: str, sides: Mapping[str, tuple[str, Tensor]]) -> LoraLayer:
    if "a" not in sides or "b" not in sides:
        raise ValueError(
            f"this LoRA has only {', '.join(name for name, _ in sides.values())} of {module}; "
            "both factors are needed, A (lora_A or lora_down) and B (lora_B or lora_up)"
        )
    a, b = (_factor(*sides[side]) for side in "ab")
    if a.shape[0] != b.shape[1]:
        raise ValueError(
            f"the factors of {module} have shapes {tuple(a.shape)} and {tuple(b.shape)}; they must "
            "be (r, in) and (out, r) with one rank r"
        )
    layer = LoraLayer(a=a, b=b, alpha=_alpha(*sides["alpha"]) if "alpha" in sides else len(a))
    largest = abs(layer.scale) * float(b.abs().max())
    update = largest * float(a.abs().max()) * layer.rank
    if largest > _LARGEST or update > _LARGEST_UPDATE:
        raise ValueError(
            f"the LoRA may add up to {update:.1e} to the weights of {module} (alpha "
            f"{layer.alpha:g}, rank {layer.rank}), which are near 1; the file is damaged, its "
            "alpha is wrong, or its training has diverged"
        )
    return layer


def _factor(name: str, tensor: Tensor) -> Tensor:
    """A factor as a matrix on the CPU that torch can compute with."""
    _check_numbers(name, tensor)
    shape = tuple(tensor.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"{name} has shape {shape}; it must be a matrix, with a rank of 1 or more"
            + (" (a convolution cannot be read)" if len(shape) > 2 else "")
        )
    return _computable(tensor.detach().to("cpu"))


def _alpha(name: str, tensor: Tensor) -> float:
    if tensor.numel() != 1 or tensor.dtype == torch.bool or tensor.is_complex():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} is a tensor of shape {tuple(tensor.shape)}, type {kind}; it must be one number"
        )
    alpha = float(tensor)
    if not math.isfinite(alpha) or alpha == 0.0:
        raise ValueError(
            f"{name} is {alpha:g}; it must be a finite number other than 0, the numerator of the "
            "scale alpha / rank"
        )
    return alpha


def _computable(tensor: Tensor) -> Tensor:
    """Turn types that torch cannot compute in on a CPU (float8) into float32; exact. Of float64 the
    nearest float32.
    """
    return tensor if tensor.dtype in _COMPUTED else tensor.float()
