"""Training on from a LoRA, whatever its rank and its layout.

Legend: r rank of the file, R rank of the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .contents import LoraContents, read_lora
from .layers import LoraLayer
from .naming import for_modules, not_in_adapter

__all__ = ["continued_state", "start_from"]

_A, _B = ".lora_A.weight", ".lora_B.weight"


def start_from(
    lora: Mapping[str, Tensor] | LoraContents, fresh: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Weights with which an adapter computes exactly what a LoRA does, to train on from there.

    Args:
        lora: A file's tensors, in any layout that :func:`~.contents.read_lora` reads, or what it
            made of them; it is renamed if the adapter needs it.
        fresh: ``state_dict()`` of the adapter, before any training.
        scale: Scale of the adapter, :attr:`~chunk_grpo_core.lora.adapter.LoraConfig.scale`.

    Returns:
        For ``load_state_dict()`` of the adapter. Layers that the file lacks stay fresh.

    Raises:
        ValueError: It is not a plain LoRA, it has layers that the adapter lacks, other shapes, or a
            higher rank.
    """
    contents = lora if isinstance(lora, LoraContents) else read_lora(lora)
    return continued_state(for_modules(contents, _modules(fresh)), fresh, scale)


def continued_state(
    layers: Mapping[str, LoraLayer], fresh: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Put layers into the weights of an adapter.

    A layer of rank r < R fills the first r ranks. The others have their fresh A and B = 0: they
    change nothing yet and can learn. So has a rank whose A and B are both 0 in the file. The scale
    of the file goes into B.

    Args:
        layers: Module name, as in the adapter -> layer.
        fresh: See :func:`start_from`.
        scale: See :func:`start_from`.

    Raises:
        ValueError: The adapter lacks a layer, or the layers have other shapes than its own, or a
            higher rank.
    """
    if missing := layers.keys() - _modules(fresh):
        raise not_in_adapter(missing, len(layers), _modules(fresh))
    state = {
        name: torch.zeros_like(tensor) if name.endswith(_B) else tensor.clone()
        for name, tensor in fresh.items()
    }
    rank = max(tensor.shape[0] for name, tensor in fresh.items() if name.endswith(_A))
    needed = max(layer.rank for layer in layers.values())
    if needed > rank:
        raise ValueError(
            f"lora.rank is {rank}, and this LoRA needs {needed} (where this model fuses layers "
            f"that the file splits, their ranks add up); set rank to {needed} or more"
        )
    for name, layer in layers.items():
        a, b = state[name + _A], state[name + _B]
        if (layer.a.shape[1], layer.b.shape[0]) != (a.shape[1], b.shape[0]):
            raise ValueError(
                f"{name} maps {layer.a.shape[1]} to {layer.b.shape[0]} numbers in this LoRA, and "
                f"{a.shape[1]} to {b.shape[0]} in this model"
            )
        dead = ~(layer.a.any(dim=1) | layer.b.any(dim=0))
        a[: layer.rank] = torch.where(dead[:, None], a[: layer.rank], layer.a.to(a.dtype))
        b[:, : layer.rank] = layer.b.float() * (layer.scale / scale)
    return state


def _modules(state: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the layers that an adapter trains."""
    return frozenset(name.removesuffix(_A) for name in state if name.endswith(_A))
