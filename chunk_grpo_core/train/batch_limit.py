"""The largest batch that fits: when memory runs out, halve it and do the same work again.

Samples of a batch do not see each other and no random number is drawn inside a call of the model,
so the numbers are those of a run that began with the smaller ``batch_size``.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ..method.policy import Velocity
from ..prompts.example import Prompt

__all__ = ["BatchLimit", "NothingFits", "is_out_of_memory"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class NothingFits(torch.OutOfMemoryError):
    """Memory ran out with a single sample."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, of a GPU or of the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(kw_only=True)
class BatchLimit:
    """How many samples may go through a model at once. It shrinks, and never grows again."""

    size: int | None = None
    """Largest batch, 1 or more; None as long as nothing limits it."""
    may_halve: bool = True
    """Whether work may be done again with a smaller batch; if not, a lack of memory is an error
    like any other."""
    is_out_of_memory: Callable[[Exception], bool] = is_out_of_memory
    """Whether an exception says that memory ran out."""
    empty_cache: Callable[[], None] = _empty_cache
    """Gives memory that is cached but not used back, before the next try."""
    relieve: Callable[[], bool] = lambda: False
    """Gives up what only saves time and takes memory, and says whether there was anything: then the
    same size is tried again."""
    on_halved: Callable[[int, int], None] = lambda before, after: None
    """Told what did not fit and what is tried next."""
    advice: str = "use smaller pictures, a LoRA with fewer layers, or a model of a smaller type"
    """What a user can do when not even one sample fits, completing "To need less, ..."."""
    _running: int = field(default=0, init=False, repr=False)
    """Samples of the call under way, or of the last one."""

    def attempt(self, work: Callable[[], T]) -> T:
        """Call ``work()`` until it fits.

        Args:
            work: Can be repeated from its beginning; reads :attr:`size` each time.

        Raises:
            NothingFits: Memory ran out with one sample.
        """
        while True:
            try:
                return work()
            except NothingFits:
                raise
            except Exception as error:
                if not (self.may_halve and self.is_out_of_memory(error)):
                    raise
                reason = str(error)
            # Not inside the handler: there the exception still holds the frames of the failed try,
            # and those hold its tensors.
            self._halve(reason)

    def join(self, function: Callable[..., Tensor], *samples: Tensor) -> Tensor:
        """Apply a function of independent samples to pieces that fit.

        Args:
            function: Maps one or more (b, ...) to (b, ...), for any b.
            samples: What it takes, each of shape (B, ...), B above 0.

        Raises:
            NothingFits: Memory ran out with one sample.
        """

        def work() -> Tensor:
            pieces = (tensor.split(self.size or len(tensor)) for tensor in samples)
            return torch.cat([self._call(function, *part) for part in zip(*pieces, strict=True)])

        return self.attempt(work)

    def fit(self, velocity: Velocity) -> Velocity:
        """Make a velocity that takes batches of any size where gradients are off.

        With gradients the memory is taken until backward is done, so the whole of it must be an
        :meth:`attempt`, with batches of at most :attr:`size`.
        """

        def fitted(x_t: Tensor, t: float | Tensor, example: Prompt) -> Tensor:
            if torch.is_grad_enabled():
                return self._call(lambda x: velocity(x, t, example), x_t)
            if isinstance(t, Tensor):
                return self.join(lambda part, times: velocity(part, times, example), x_t, t)
            return self.join(lambda part: velocity(part, t, example), x_t)

        return fitted

    def _call(self, function: Callable[..., Tensor], *samples: Tensor) -> Tensor:
        self._running = len(samples[0])
        return function(*samples)

    def _halve(self, reason: str) -> None:
        gc.collect()  # reference cycles may hold tensors, too
        self.empty_cache()
        if self.relieve():
            log.warning("out of memory; going on with what takes less and more time")
            return
        # Work that does not keep to the size must not be tried for ever.
        before = min(self._running, self.size or self._running)
        if before <= 1:
            raise NothingFits(
                f"memory ran out with one sample at a time. To need less, {self.advice}. ({reason})"
            )
        self.size = before // 2
        log.warning("out of memory with %d samples at once; going on with %d", before, self.size)
        self.on_halved(before, self.size)
