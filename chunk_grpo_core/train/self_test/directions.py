"""What the self-test moves: layers of the adapter along their gradients, or at random."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...method.noise import derive_seed
from .moves import Direction, Gradients

__all__ = [
    "Layer",
    "along_gradients",
    "at_random",
    "groups_of",
    "idle_tensors",
    "layers_of",
    "named",
]

_WEAKEST = 1.0 / 30.0
"""Of the median: a layer with a smaller gradient is not moved as far as to have the same part."""
_NAMED = 8
"""Layers that a message lists."""


class Layer(NamedTuple):
    """A layer of the adapter that has a gradient."""

    length: float
    """L2 norm of its gradient."""
    numbers: tuple[int, ...]
    """Of its tensors that have one."""


def layers_of(gradients: Gradients, parameters: Sequence[nn.Parameter]) -> list[Layer]:
    """Layers with a gradient, from the smallest one: A and B together, where they follow."""
    norms, size = gradients.norms, _tensors_of_a_layer(parameters)
    layers = []
    for first in range(0, len(norms), size):
        numbers = tuple(n for n in range(first, first + size) if norms[n] > 0.0)
        if numbers:
            layers.append(Layer(math.hypot(*(norms[n] for n in numbers)), numbers))
    return sorted(layers)


def idle_tensors(parameters: Sequence[nn.Parameter]) -> set[int]:
    """Numbers of factors A whose B is zero, as in a fresh LoRA: nothing depends on them."""
    if _tensors_of_a_layer(parameters) == 1:
        return set()
    return {
        number
        for number in range(0, len(parameters), 2)
        if not parameters[number + 1].detach().any()
    }


def groups_of(layers: Sequence[Layer], count: int) -> list[Sequence[Layer]]:
    """Cut into so many runs of neighbours, or as many as there are layers."""
    count = min(count, len(layers))
    ends = [len(layers) * part // count for part in range(count + 1)]
    return [layers[start:end] for start, end in pairwise(ends)]


def along_gradients(gradients: Gradients, layers: Sequence[Layer]) -> Direction:
    """Along the gradient, so that each layer has the same part in the derivative."""
    floor = _WEAKEST * layers[len(layers) // 2].length
    return {
        number: tensor.detach() / max(layer.length, floor) ** 2
        for layer in layers
        for number in layer.numbers
        if (tensor := gradients.tensors[number]) is not None
    }


def at_random(parameters: Sequence[nn.Parameter], numbers: Iterable[int]) -> dict[int, Tensor]:
    """Draw N(0, 1). Fresh factors B are 0, but the derivative along them is not."""
    generator = torch.Generator().manual_seed(derive_seed("self-test"))
    return {
        number: torch.randn(parameters[number].shape, generator=generator).to(parameters[number])
        for number in numbers
    }


def named(numbers: Iterable[int], parameters: Sequence[nn.Parameter]) -> str:
    """Layers as a user can count them, in the order of the LoRA."""
    size = _tensors_of_a_layer(parameters)
    layers, total = sorted({number // size + 1 for number in numbers}), len(parameters) // size
    if len(layers) == total > 1:
        return "the LoRA"
    shown = ", ".join(map(str, layers[:_NAMED])) + (", ..." if len(layers) > _NAMED else "")
    return f"the LoRA (layer{'s' if len(layers) > 1 else ''} {shown} of {total})"


def _tensors_of_a_layer(parameters: Sequence[nn.Parameter]) -> int:
    """2 if each tensor (r, I) is followed by its (O, r), else 1."""
    downs, ups = parameters[::2], parameters[1::2]
    are_pairs = len(downs) == len(ups) and all(
        a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] for a, b in zip(downs, ups, strict=True)
    )
    return 2 if are_pairs else 1
