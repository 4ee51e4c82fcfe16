"""Derivatives of quantised layers.

ComfyUI multiplies by quantised weights with kernels whose backward pass is another matter:
int8 rounds the incoming gradient, fp8 may do so too, and four-bit products (``convrot_w4a4`` and
its kind) have none. Here backward multiplies by the weights that the numbers stand for,

    dL/dx = dL/dy W,    W dequantised, rotation and stacked LoRAs included.

Where the kernel rounds x to 8 bits, the forward pass is ComfyUI's own, and its rounding is left out
of the derivative (a straight-through estimate). Four bits are too coarse for that: there, forward
multiplies by W as well, in rollouts and in training alike. Nothing is kept for backward, and
weights that live elsewhere are brought again.

References:
    Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation
    (Bengio et al., 2013), arXiv 1308.3432v1: the straight-through estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

__all__ = ["differentiable", "is_quantised"]

Forward = Callable[..., Tensor]

_COARSE = ("W4A", "SVDQuant", "INT4")
"""In names of layouts whose products round x to four bits."""


def is_quantised(layer: nn.Module) -> bool:
    """Whether a linear layer of ComfyUI holds numbers that stand for its weight."""
    return _is_packed(getattr(layer, "weight", None)) and hasattr(layer, "weight_function")


def differentiable(layer: nn.Module, forward: Forward) -> Forward:
    """Wrap the forward of a frozen quantised layer, so that it has the derivative of its weight."""
    if any(mark in str(getattr(layer, "layout_type", "")) for mark in _COARSE):

        def product(x: Tensor) -> Tensor:
            with _weights(layer, x) as (weight, bias):
                return torch.nn.functional.linear(x, weight, bias)

    else:
        product = forward

    def wrapped(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs:
            return forward(x, *args, **kwargs)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, layer, product)
        return product(x)

    return wrapped


class _Product(torch.autograd.Function):
    """y = product(x); backward multiplies by the dequantised weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, product: Forward) -> Tensor:
        ctx.layer, ctx.like = layer, x.detach().new_empty(0)
        return product(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        with torch.no_grad(), _weights(ctx.layer, ctx.like) as (weight, _):
            return grad @ weight.to(grad.dtype), None, None


@contextmanager
def _weights(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight and bias where ``like`` is and of its type, stacked LoRAs included."""
    weight, bias, moved = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    try:
        yield (weight.dequantize().to(like.dtype) if _is_packed(weight) else weight), bias
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, moved)


def _is_packed(weight: Any) -> bool:
    weight = weight.data if isinstance(weight, nn.Parameter) else weight
    is_plain = type(weight) in (Tensor, type(None))
    return not is_plain and hasattr(weight, "dequantize") and hasattr(weight, "__tensor_flatten__")
