"""Correct gradients through ComfyUI's native transformer blocks.

ComfyUI's models are written for inference, and four things about them are wrong for training:

1. Blocks add residuals in place (``img += ...``). Plain backward raises; under checkpointing the
   saved block input is silently overwritten and the gradients are wrong. :class:`OutOfPlaceAug`
2. Whatever a node outputs was made under ``torch.inference_mode()`` and cannot be saved for
   backward. :func:`alias`
3. Activations of a whole model do not fit; they are recomputed block by block. :func:`checkpointed`
4. Weights that do not live on the compute device are cast through a buffer that the next layer
   overwrites, so a weight saved for backward may hold other numbers by then. :func:`refetching`
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

__all__ = ["OutOfPlaceAug", "alias", "checkpointed", "refetching"]

Forward = Callable[..., Any]

# ``a += b`` reaches a torch-function mode as Tensor.add_, just like an explicit ``a.add_(b)``.
_OUT_OF_PLACE: dict[Any, Forward] = {
    torch.Tensor.add_: torch.add,
    torch.Tensor.sub_: torch.sub,
    torch.Tensor.mul_: torch.mul,
    torch.Tensor.div_: torch.div,
}
_AUGMENTED = {
    dis.opmap[name]
    for name in (
        "BINARY_OP",  # Python 3.11 and later
        "INPLACE_ADD",
        "INPLACE_SUBTRACT",
        "INPLACE_MULTIPLY",
        "INPLACE_TRUE_DIVIDE",
    )
    if name in dis.opmap
}


@lru_cache(maxsize=1024)
def _is_augmented(code: CodeType, offset: int) -> bool:
    """Whether the instruction at ``offset`` is an augmented assignment.

    Not read from ``code.co_code`` alone: a specialised instruction may stand there.
    """
    return any(
        instruction.offset == offset and instruction.opcode in _AUGMENTED
        for instruction in dis.get_instructions(code)
    )


class OutOfPlaceAug(TorchFunctionMode):
    """Inside this mode ``a += b`` makes a new tensor and rebinds ``a``, as ``a = a + b`` would.

    An explicit ``a.add_(b)`` keeps its meaning, because its caller may ignore the returned tensor;
    the two are told apart by the instruction that the calling frame is executing.
    """

    def __torch_function__(
        self,
        func: Forward,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        replacement = _OUT_OF_PLACE.get(func)
        if replacement is not None:
            caller = sys._getframe(1)
            if _is_augmented(caller.f_code, caller.f_lasti):
                func = replacement
        return func(*args, **(kwargs or {}))


def alias(tensor: Tensor) -> Tensor:
    """Return a normal tensor on the storage of an inference tensor; nothing is copied.

    ``detach()`` and ``view()`` of an inference tensor are inference tensors again, so the storage
    is taken over by ``set_``. Wrapper subclasses (quantised weights) are rebuilt from their parts.
    """
    if type(tensor) in (Tensor, nn.Parameter):
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return empty.set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )
    names, context = tensor.__tensor_flatten__()
    parts = {name: alias(getattr(tensor, name)) for name in names}
    return type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())


def checkpointed(forward: Forward) -> Forward:
    """Wrap a block's forward: recompute it in backward, residuals out of place.

    Without gradients (rollouts) the block runs exactly as ComfyUI wrote it. Blocks in evaluation
    mode draw no random numbers, so the generator states need not be kept. ComfyUI writes the
    number of the running block into the options that it hands to all of them; the second run gets
    them as they were.
    """

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        options = {name: dict(value) for name, value in kwargs.items() if type(value) is dict}
        is_second_run = False

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_second_run
            if is_second_run:
                kwargs |= {name: dict(value) for name, value in options.items()}
            is_second_run = True
            with OutOfPlaceAug():
                return forward(*args, **kwargs)

        # Backward recomputes later, maybe in another thread, but with the context of this call.
        run_here = copy_context().run
        # Tensors are handed over one by one: torch then notices if a block writes into its inputs.
        return checkpoint(
            run_here, run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )

    return wrapped


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
