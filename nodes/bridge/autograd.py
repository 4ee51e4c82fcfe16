"""Correct gradients through ComfyUI's native transformer blocks.

ComfyUI's models are written for inference, and some things about them are wrong for training:

1. Blocks write into tensors that backward still needs (``img += ...``). Plain backward raises;
   under checkpointing the gradients are silently wrong. :class:`KeepSaved`
2. Whatever a node outputs was made under ``torch.inference_mode()`` and cannot be saved for
   backward. :func:`alias`
3. Activations of a whole model do not fit; they are recomputed block by block. :func:`checkpointed`
4. Weights that do not live on the compute device are cast through a buffer that the next layer
   overwrites, so a weight saved for backward may hold other numbers by then. :func:`refetching`
   Those of another type than the products are cast for each call, and autograd would keep the wide
   copies of a whole model. :func:`with_weights_cast_again`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import copy_context
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

__all__ = ["KeepSaved", "alias", "checkpointed", "refetching", "with_weights_cast_again"]

Forward = Callable[..., Any]

_HARMLESS = ("requires_grad_", "detach_", "set_")


@lru_cache(maxsize=1024)
def _writes(func: Forward) -> bool:
    """Whether a tensor method changes its tensor: ``add_`` (``a += b`` is one), ``copy_``, ..."""
    name = getattr(func, "__name__", "")
    is_in_place = name.endswith("_") and not name.startswith("_") and name not in _HARMLESS
    return is_in_place or name == "__setitem__"


@torch.no_grad()
def _renew(tensor: Tensor) -> None:
    """Give a tensor a copy of its memory; whoever shares the old memory keeps the old values."""
    base = tensor if tensor._base is None else tensor._base
    fresh = torch.empty_strided(base.size(), base.stride(), dtype=base.dtype, device=base.device)
    memory, start = fresh.copy_(base).untyped_storage(), base.storage_offset()
    for view in (tensor, base):
        view.set_(memory, view.storage_offset() - start, view.size(), view.stride())


class KeepSaved(TorchFunctionMode):
    """Inside this mode, in-place writes leave alone what autograd has saved.

    A tensor of the graph gets a copy of its memory right before it is written to. Its name and its
    place in the graph stay; saved aliases of it keep the values that backward needs. Buffers that
    carry no gradient, such as those weights are cast into, are written to as ever.
    """

    def __torch_function__(
        self,
        func: Forward,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _writes(func) or kwargs.get("inplace"):
            is_in_graph = any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
            if is_in_graph and type(args[0]) is Tensor:
                written, *rest = args
                args = (written, *(arg.clone() if arg is written else arg for arg in rest))
                _renew(written)
        return func(*args, **kwargs)


def alias(tensor: Tensor) -> Tensor:
    """Return a normal tensor on the storage of an inference tensor; nothing is copied.

    ``detach()`` and ``view()`` of an inference tensor are inference tensors again, so the storage
    is taken over by ``set_``. Wrapper subclasses (quantised weights) are rebuilt from their parts;
    other ones (the packed weights of GGUF files) keep their class and what is noted on them.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        plain = empty.set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
        if type(tensor) in (Tensor, nn.Parameter):
            return plain
        same = plain.as_subclass(type(tensor))
        same.__dict__.update(tensor.__dict__)
        return same
    names, context = tensor.__tensor_flatten__()
    inner_tensors = {name: alias(getattr(tensor, name)) for name in names}
    return type(tensor).__tensor_unflatten__(inner_tensors, context, tensor.size(), tensor.stride())


def checkpointed(forward: Forward, offload: bool = False) -> Forward:
    """Wrap a block's forward: recompute it in backward, and keep what in-place writes overwrite.

    Without gradients (rollouts) the block runs exactly as ComfyUI wrote it. Blocks in evaluation
    mode draw no random numbers, so the generator states need not be kept. ComfyUI writes the
    number of the running block into the options that it hands to all of them; the second run gets
    them as they were.

    Args:
        forward: Of a block.
        offload: Keep the hidden states that go into the block in system memory until backward.
            What carries no gradient (positions, masks) is shared by all blocks and stays.
    """

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        given = {**dict(enumerate(args)), **kwargs}
        states = {k: v for k, v in given.items() if isinstance(v, Tensor) and v.requires_grad}
        rest = {key: value for key, value in given.items() if key not in states}
        options = {key: dict(value) for key, value in rest.items() if type(value) is dict}
        names, positional, is_second_run = tuple(states), range(len(args)), False

        def run(*tensors: Tensor) -> Any:
            nonlocal is_second_run
            inputs = rest | dict(zip(names, tensors, strict=True))
            if is_second_run:
                inputs |= {key: dict(value) for key, value in options.items()}
            is_second_run = True
            # Copies: the second run needs the inputs as they were.
            inputs = {key: _copied(value) for key, value in inputs.items()}
            first = [inputs.pop(i) for i in positional]
            with KeepSaved():
                return forward(*first, **inputs)

        # Backward recomputes later, maybe in another thread, but with the context of this call.
        run_here = copy_context().run
        # The states are handed over one by one: torch then keeps them as saved tensors, and
        # notices if anyone writes into them.
        with save_on_cpu(pin_memory=True) if offload else nullcontext():
            return checkpoint(
                run_here, run, *states.values(), use_reentrant=False, preserve_rng_state=False
            )

    return wrapped


def _copied(value: Any) -> Any:
    return value.clone() if type(value) is Tensor and value.is_floating_point() else value


class _Refetch(torch.autograd.Function):
    """y = forward(x), where backward calls forward again instead of keeping its weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Forward) -> Tensor:
        ctx.save_for_backward(x)
        ctx.run = forward
        return forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_(True)
            y = ctx.run(x)
        return torch.autograd.grad(y, x, grad)[0], None


def refetching(forward: Forward) -> Forward:
    """Wrap the forward of a frozen one-input layer so that backward fetches its weights anew."""

    def wrapped(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not (torch.is_grad_enabled() and x.requires_grad):
            return forward(x, *args, **kwargs)
        return _Refetch.apply(x, forward)

    return wrapped


class _CastAgain(torch.autograd.Function):
    """y = W x + b, where backward casts W once more instead of keeping the copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, forward: Forward) -> Tensor:
        ctx.layer = layer
        return forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.layer.weight.to(grad.dtype), None, None


def with_weights_cast_again(layer: nn.Module, forward: Forward) -> Forward:
    """Wrap the forward of a frozen linear layer, whose weights are on the device of its input, but
    in another type."""

    def wrapped(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not (torch.is_grad_enabled() and x.requires_grad):
            return forward(x, *args, **kwargs)
        return _CastAgain.apply(x, layer, forward)

    return wrapped
