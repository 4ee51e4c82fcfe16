"""How the frozen weights of a transformer are kept: in 32, 16, 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..optional import require
from ..settings.declared import shortened
from .fp8 import FP8, replace_linears, to_fp8, widened
from .weight_file import SCALE

__all__ = ["WEIGHTS", "bitsandbytes_config", "check_weights", "keep_in_fp8", "to_type"]

#: How weights are kept -> the type to compute in.
WEIGHTS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,
    "int8": torch.bfloat16,
    "nf4": torch.bfloat16,
    "gguf": torch.bfloat16,
}
_BITSANDBYTES = ("int8", "nf4")


def check_weights(weights: str, device: torch.device) -> None:
    """Make sure that weights can be kept like this, on this machine.

    Args:
        weights: A key of :data:`WEIGHTS`.
        device: Where the model will compute.

    Raises:
        ValueError: They cannot.
        ImportError: A package is missing; the message says how to install it.
    """
    if weights not in WEIGHTS:
        raise ValueError(
            f"model.weights is {shortened(weights)}; it must be one of {', '.join(WEIGHTS)}"
        )
    if weights in _BITSANDBYTES:
        require("bitsandbytes", f"To keep weights as {weights}")
        require("accelerate", f"To keep weights as {weights}")
        if device.type != "cuda":
            raise ValueError(f"weights is {weights!r}, which needs a CUDA device, not {device}")
    if weights == "gguf":
        require("gguf", "To read a GGUF file")
        require("accelerate", "To read a GGUF file")


def bitsandbytes_config(weights: str) -> Any:
    """diffusers' description of int8 or nf4; None for all others."""
    if weights not in _BITSANDBYTES:
        return None
    kind = require("diffusers", f"To keep weights as {weights}").BitsAndBytesConfig
    if weights == "int8":
        return kind(load_in_8bit=True)
    return kind(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=WEIGHTS[weights]
    )


def to_type(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Bring all weights to one type, fp8 with its scales."""
    return {
        name: widened(tensor, state.get(name.removesuffix(".weight") + SCALE), dtype)
        for name, tensor in state.items()
        if not name.endswith(SCALE)
    }


def keep_in_fp8(model: nn.Module, wanted: Callable[[str], bool]) -> None:
    """Round the weights of some linear layers of a filled model to 8 bits.

    diffusers' own way (``enable_layerwise_casting``) casts by hooks, and autograd keeps what was
    cast: in training the whole model would be there in 16 bits.

    Args:
        model: A transformer; it is changed.
        wanted: Name of a linear layer -> whether it is kept so.
    """
    filled = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and wanted(name)
    }
    replace_linears(model, filled.__contains__)
    for name in list(filled):
        layer = filled.pop(name)
        weight, scale = _in_8_bits(layer.weight.detach())
        state = {"weight": weight, SCALE.removeprefix("."): scale}
        if layer.bias is not None:
            state["bias"] = layer.bias.detach()
        model.get_submodule(name).load_state_dict(state, strict=True, assign=True)


def _in_8_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`~.fp8.to_fp8`, but numbers that are in 8 bits already stay as they are."""
    rounded = weight.to(FP8)
    if torch.equal(rounded.to(weight.dtype), weight):
        return rounded, torch.ones(())
    return to_fp8(weight)
