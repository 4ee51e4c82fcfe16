"""What backward needs of a block: kept as long as memory lasts, else computed again.

Keeping it saves a forward pass of the block; the gradients are the same to the last bit. How much
that is gets counted in the first call of each block in each shape.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as memory
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .autograd import KeepSaved, checkpointed

__all__ = ["Activations", "free_memory", "kept_or_recomputed"]

logger = logging.getLogger(__name__)

_GIB = 2**30
_RESERVE = 0.15
"""Share of the device's memory that stays free: a backward pass, other programs, fragments."""

Forward = Callable[..., Any]
Call = tuple[int, tuple[tuple[int, ...], ...]]
"""Number of a block, and shapes of what goes into it."""


def free_memory(device: torch.device) -> float:
    """Bytes on ``device`` that may be filled with activations now, below 0 if it is full."""
    kept_back = 0 if device.type == "cpu" else memory.extra_reserved_memory()  # --reserve-vram
    reserve = _RESERVE * memory.get_total_memory(device)
    return memory.get_free_memory(device) - max(reserve, kept_back)


class Activations:
    """Decides which blocks of a call keep their activations; one object for a training."""

    def __init__(self, free: Callable[[], float]) -> None:
        """Begin without knowing any size.

        Args:
            free: Gives the bytes that may be filled now.
        """
        self._free = free
        self._is_allowed = True
        self._budget = 0.0
        self._sizes: dict[Call, int] = {}
        self._kinds: dict[type, int] = {}
        """Kind of block -> the most that one was seen to keep."""
        self._kept: list[int] = []
        """Bytes of each block of the present call."""
        self._recomputed = 0
        self._told: tuple[int, int] | None = None

    def begin(self) -> None:
        """Start a call of the model."""
        counts = (len(self._kept), self._recomputed)
        if any(counts) and counts != self._told:
            self._told = counts
            logger.info(
                "backward finds the activations of %d of %d blocks in memory (%.2f GiB); "
                "it computes the others again",
                counts[0], sum(counts), sum(self._kept) / _GIB,
            )  # fmt: skip
        self._kept, self._recomputed = [], 0
        self._budget = self._free() if self._is_allowed else 0.0

    def give_up(self) -> bool:
        """Keep nothing from now on.

        Returns:
            Whether anything was kept until now, so that it helps.
        """
        helps, self._is_allowed = self._is_allowed and bool(self._sizes), False
        return helps

    def fits(self, call: Call, kind: type) -> bool:
        """Whether the block of this call may keep its activations."""
        expected = self._sizes.get(call, self._kinds.get(kind, 0))
        room = self._budget - max(self._kinds.values(), default=0)  # one block is computed again
        is_kept = room > 0 and expected <= room
        self._recomputed += not is_kept
        return is_kept

    @contextmanager
    def keeping(self, call: Call, block: nn.Module) -> Iterator[None]:
        """Run a block in here that keeps its activations."""
        is_known = call in self._sizes
        found: dict[int, int] = {}

        def counted(tensor: Tensor) -> Tensor:
            found.update(_memory(tensor))
            return tensor.detach()

        # By itself autograd saves the tensor that the block then writes into, whose memory
        # :class:`KeepSaved` exchanges; an alias of it keeps the old memory.
        pack = Tensor.detach if is_known else counted
        with saved_tensors_hooks(pack, lambda tensor: tensor), KeepSaved():
            yield
        if not is_known:
            for parameter in block.parameters():
                for place in _memory(parameter):
                    found.pop(place, None)
            self._sizes[call] = size = sum(found.values())
            self._kinds[type(block)] = max(size, self._kinds.get(type(block), 0))
        self._kept.append(self._sizes[call])
        self._budget -= self._sizes[call]


def _memory(tensor: Tensor) -> dict[int, int]:
    """Address -> bytes, of all parts of a tensor."""
    if hasattr(tensor, "__tensor_flatten__"):  # quantised
        parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        return {place: size for part in parts for place, size in _memory(part).items()}
    storage = tensor.untyped_storage()
    return {storage.data_ptr(): storage.nbytes()}


def kept_or_recomputed(
    block: nn.Module, number: int, activations: Activations, forward: Forward
) -> Forward:
    """Wrap a block's forward for training; without gradients it runs as ComfyUI wrote it.

    Args:
        block: Of the model.
        number: Its place, from 0; 0 begins a call of the model.
        activations: What decides.
        forward: What it runs at present.
    """
    recomputing = checkpointed(forward)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if number == 0:
            activations.begin()
        given = (*args, *kwargs.values())
        call = (number, tuple(tuple(value.shape) for value in given if isinstance(value, Tensor)))
        if not activations.fits(call, type(block)):
            return recomputing(*args, **kwargs)
        with activations.keeping(call, block):
            return forward(*args, **kwargs)

    return wrapped
