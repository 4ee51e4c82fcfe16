"""Frozen linear layers whose weights stay in 8 bits: y = x (scale W8)^T + b.

W8 is float8_e4m3fn with one float32 scale for each layer. The weight is widened for one product and
let go; backward widens it again instead of keeping it, so that a training never holds the whole
model in 16 bits (which casting by hooks does, because autograd keeps what it multiplied with).

Legend: I inputs, O outputs.

References:
    FP8 Formats for Deep Learning (Micikevicius et al., 2022), arXiv 2209.05433v2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["FP8", "Fp8Linear", "replace_linears", "to_fp8", "widened"]

FP8 = torch.float8_e4m3fn


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to 8 bits; the largest entry takes the largest number there is, 448.

    Returns:
        W8, float8_e4m3fn, and the scale, float32, shape ().
    """
    weight = weight.float()
    scale = (weight.abs().amax() / torch.finfo(FP8).max).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale).to(FP8), scale


def widened(weight: Tensor, scale: Tensor | float | None, dtype: torch.dtype) -> Tensor:
    """Undo :func:`to_fp8`, rounding once; a scale of None is 1.

    A number is the fast way: the product with a number is computed in float32 and rounded by one
    kernel, which moves a third of the bytes.
    """
    if scale is None:
        return weight.to(dtype)
    if isinstance(scale, Tensor):
        return (weight.float() * scale).to(dtype)
    return weight.to(dtype, copy=True).mul_(scale)


class _Product(torch.autograd.Function):
    """The product, which remembers 8 bits for its backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | float, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.scale = scale
        return linear(x, widened(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return grads[0] @ widened(weight, ctx.scale, grads[0].dtype), None, None, None


class Fp8Linear(nn.Linear):
    """A linear layer that is frozen, in 8 bits."""

    def __init__(self, like: nn.Linear) -> None:
        """Make an empty layer of the same shape, on the meta device; load weights into it."""
        has_bias = like.bias is not None
        super().__init__(like.in_features, like.out_features, has_bias, device="meta")
        self.weight = nn.Parameter(self.weight.to(FP8), requires_grad=False)
        self.scale_weight: Tensor
        self.register_buffer("scale_weight", torch.empty((), device="meta"))
        self._number: tuple[Tensor, float] | None = None

    @property
    def scale(self) -> float:
        """The scale as a number; it is fetched from its device once."""
        if self._number is None or self._number[0] is not self.scale_weight:
            self._number = (self.scale_weight, self.scale_weight.item())
        return self._number[1]

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O), in the type of the input."""
        # A compiled block serves all blocks of its kind, so no number of one may be in it; it
        # widens in one kernel in any case.
        scale = self.scale_weight if torch.compiler.is_compiling() else self.scale
        return _Product.apply(input, self.weight, scale, self.bias)  # type: ignore


def replace_linears(module: nn.Module, wanted: Callable[[str], bool]) -> set[str]:
    """Put an empty :class:`Fp8Linear` where a linear layer is and its name is wanted.

    Returns:
        Names of the layers replaced.
    """
    linears = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear) and wanted(name)
    }
    for name, child in linears.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, Fp8Linear(child))
    return set(linears)
