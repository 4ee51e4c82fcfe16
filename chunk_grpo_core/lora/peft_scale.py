"""The scale of a LoRA that peft trained; it is in no tensor of the file.

diffusers writes peft's configuration into the header of its files, and peft itself into
``adapter_config.json`` beside them. Legend: r rank.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .contents import split_factor_name

__all__ = ["PEFT_HEADER", "peft_alphas"]

log = logging.getLogger(__name__)

PEFT_HEADER = "lora_adapter_metadata"
"""Where diffusers writes peft's configuration, as JSON."""
_FILE = "adapter_config.json"
_PREFIX = "transformer."
_PEFT_PREFIX = "base_model.model."


def peft_alphas(
    tensors: Mapping[str, Tensor], header: str | None, folder: Path
) -> dict[str, Tensor]:
    """Alpha tensors for a file whose scale stands elsewhere; empty for other files.

    Args:
        tensors: Contents of the file.
        header: What its header has under :data:`PEFT_HEADER`.
        folder: Where peft would have put ``adapter_config.json``.

    Raises:
        ValueError: The configuration cannot be read, or gives layers scales of their own.
    """
    if header is not None:
        where = f"the header of this LoRA ({PEFT_HEADER})"
        entries = _object(header, where)
        own = {
            name.removeprefix(_PREFIX): value
            for name, value in entries.items()
            if name.startswith(_PREFIX)
        }
        return _alphas(tensors, _PREFIX, own, where)
    if not any(name.startswith(_PEFT_PREFIX) for name in tensors) or any(
        name.endswith(".alpha") for name in tensors
    ):
        return {}
    file = folder / _FILE
    if file.is_file():
        return _alphas(tensors, _PEFT_PREFIX, _object(file.read_bytes(), str(file)), str(file))
    log.warning(
        "this LoRA of peft holds no alpha, and there is no %s beside it; its scale is taken as 1. "
        "Put that file there if the LoRA was trained with another",
        _FILE,
    )
    return {}


def _object(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON that can be read ({error})") from error
    if not isinstance(value, dict):
        kind = {list: "a list", type(None): "null"}.get(type(value), "a single value")
        raise ValueError(f"{where} is {kind} and not a JSON object with r and lora_alpha")
    return value


def _alphas(
    tensors: Mapping[str, Tensor], prefix: str, config: Mapping[str, Any], where: str
) -> dict[str, Tensor]:
    """One alpha for each layer whose name has the prefix, alpha / r being its scale."""
    if config.get("alpha_pattern") or not {"r", "lora_alpha"} <= config.keys():
        raise ValueError(
            f"{where} does not give one alpha for all layers (r, lora_alpha, no alpha_pattern); "
            "load the LoRA with diffusers and save it without this entry"
        )
    alpha, declared = config["lora_alpha"], config["r"]
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not _is_scale(alpha):
        raise ValueError(
            f"{where} gives lora_alpha as {str(alpha)[:40]!r}; it must be a finite number other "
            "than 0"
        )
    alphas: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        factor = split_factor_name(name)
        if name.startswith(prefix) and factor and factor[1] == "a" and tensor.ndim > 0:
            rank = tensor.shape[0]
            if rank != declared and not config.get("rank_pattern"):
                raise ValueError(
                    f"{where} gives r as {str(declared)[:40]!r}, and {name} has the rank {rank}; "
                    "they do not belong together"
                )
            own = alpha * math.sqrt(rank) if config.get("use_rslora") else alpha
            alphas[f"{factor[0]}.alpha"] = torch.tensor(float(own))
    return alphas


def _is_scale(alpha: float) -> bool:
    try:
        return math.isfinite(alpha) and alpha != 0
    except OverflowError:  # a whole number beyond all floating-point ones
        return False
