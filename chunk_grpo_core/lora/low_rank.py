"""The side branch of a LoRA: y + scale B A x.

Where the layer answers in bfloat16, so is the branch computed, from float32 factors rounded for the
product: what mixed precision does everywhere, and as exact as the sum, which is rounded to bfloat16
in any case. Elsewhere the branch has the type of its factors: float16 has too small a range for
their gradients.

Legend: r rank, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["add_low_rank"]


def add_low_rank(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, *, in_place: bool = False
) -> Tensor:
    """Add the branch to the output of a layer.

    Args:
        y: What the layer gave, (..., O).
        x: What went into the layer, (..., I).
        a: A, (r, I), float32.
        b: B, (O, r), float32.
        scale: alpha / r.
        in_place: ``y`` may be overwritten, which saves a copy; the numbers are the same.

    Returns:
        The sum, (..., O), in the type of ``y``.
    """
    if y.dtype != torch.bfloat16:
        return (y + linear(linear(x.to(a.dtype), a), b) * scale).to(y.dtype)
    flat, narrow = y.flatten(0, -2), linear(x.to(y.dtype), a.to(y.dtype)).flatten(0, -2)
    add = flat.addmm_ if in_place else flat.addmm
    return add(narrow, b.to(y.dtype).T, alpha=scale).view(y.shape)
