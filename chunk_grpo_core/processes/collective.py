"""Several processes that train one adapter: who does what, and what they tell each other.

Every process holds the adapter. It samples, scores and replays its own share of the groups; scores
are gathered before advantages are formed, and gradients are summed before they are clipped, so that
a run gives the numbers of one process up to the order of additions. Seeds belong to prompts and
samples, not to processes.

The gradients are summed by hand, not by ``DistributedDataParallel``: its hooks count on one
backward pass for each update, while the streamed gradient (``streaming.py``) takes one for each
micro-batch, a different number of them in every process.

:class:`Processes` is the plain case of one process, in which nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .equal_calls import LockStep

__all__ = ["PeerFailed", "Processes", "Share", "TorchProcesses", "divided"]

T = TypeVar("T")


class PeerFailed(RuntimeError):
    """The first process has met an error, and reports it; this one only ends, too."""


@dataclass(frozen=True)
class Share:
    """A group, or the part of one, that a process works on."""

    group: int
    """Number of the group in the iteration."""
    samples: slice
    """Its samples, of which there is at least one."""


def divided(
    groups: int, group_size: int, rank: int, count: int, *, split_groups: bool = False
) -> list[Share]:
    """The share of one process in an iteration: consecutive groups, the same number for each.

    Args:
        groups: P, 1 or more.
        group_size: G, 1 or more.
        rank: 0-based number of the process.
        count: Processes in all.
        split_groups: Divide the P G samples instead, so that a group may belong to several.

    Raises:
        ValueError: The groups (or samples) cannot be divided by the processes.
    """
    if split_groups:
        return _divided_samples(groups, group_size, rank, count)
    if groups % count:
        below, above = groups - groups % count, groups - groups % count + count
        sizes = f"{below} or {above}" if below else str(above)
        counts = _divisors(groups)
        split = ", or split groups (--split-groups)" if groups * group_size % count == 0 else ""
        raise ValueError(
            f"prompts_per_iteration is {groups}, which {count} processes cannot share evenly; set "
            f"it to {sizes} (a multiple of {count}), start {counts} processes{split}"
        )
    each = groups // count
    whole = slice(0, group_size)
    return [Share(group, whole) for group in range(rank * each, (rank + 1) * each)]


def _divided_samples(groups: int, group_size: int, rank: int, count: int) -> list[Share]:
    total = groups * group_size
    if total % count:
        raise ValueError(
            f"an iteration has {groups} x {group_size} = {total} samples (prompts_per_iteration x "
            f"group_size), which {count} processes cannot share evenly; start "
            f"{_divisors(total)} processes, or change one of the two"
        )
    first, last = rank * total // count, (rank + 1) * total // count
    shares = []
    for group in range(first // group_size, (last - 1) // group_size + 1):
        start = group * group_size
        samples = slice(max(first - start, 0), min(last - start, group_size))
        shares.append(Share(group, samples))
    return shares


def _divisors(number: int) -> str:
    *rest, last = (str(n) for n in range(1, number + 1) if number % n == 0)
    return f"{', '.join(rest)} or {last}" if rest else last


class Processes:
    """The processes of a run: here one alone, which has everything and waits for nobody."""

    rank: int = 0
    """0-based number of this process."""
    count: int = 1
    """Processes in all."""
    device: torch.device | None = None
    """Where this process computes; None leaves it to the model."""

    def __init__(self, *, split_groups: bool = False) -> None:
        """Args: see :func:`divided`."""
        self.split_groups = split_groups

    @property
    def is_writer(self) -> bool:
        """Whether this is the one process that writes files and tells listeners."""
        return self.rank == 0

    def shares(self, groups: int, group_size: int) -> list[Share]:
        """What this process does of an iteration; see :func:`divided`."""
        return divided(groups, group_size, self.rank, self.count, split_groups=self.split_groups)

    def part(self, count: int) -> range:
        """Of ``count`` things those that this process does; as many as the others, give or take
        one."""
        return range(self.rank * count // self.count, (self.rank + 1) * count // self.count)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their numbers, in every process."""
        return [value]

    def from_writer(self, work: Callable[[], T]) -> T:
        """Do ``work()`` in the writing process and give its result, on the CPU, to all.

        Raises:
            PeerFailed: It raised an exception there (which the writing process itself raises).
        """
        return work()

    def one_first(self, work: Callable[[], T]) -> T:
        """Do ``work()`` in one process of each machine, then in the others, which find on disk what
        the first one has put there."""
        return work()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every parameter the sum of its gradients in all processes; None if nobody has one.

        Args:
            parameters: The same in every process.
        """

    def copy_from_writer(self, parameters: Sequence[nn.Parameter]) -> None:
        """Set parameters to the values they have in the writing process."""


class TorchProcesses(Processes):
    """The processes of torch.distributed's default group, which must exist."""

    def __init__(
        self,
        *,
        timeout: timedelta,
        device: torch.device,
        local_rank: int,
        split_groups: bool = False,
    ) -> None:
        """Make a second group, over the CPU, for all that is not a gradient.

        Args:
            timeout: Longest time that a process waits for the others.
            device: Where this process computes.
            local_rank: Number of this process on its machine.
            split_groups: See :func:`divided`.
        """
        super().__init__(split_groups=split_groups)
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.device, self._local_rank = device, local_rank
        # gloo notices at once when a process at the other end is gone; nccl does not.
        self._words: Any = dist.new_group(backend="gloo", timeout=timeout)
        self.lock_step = LockStep(self._largest)
        """Set up by whoever spreads a model over the processes."""

    def leave(self) -> None:
        """Let go of the groups; nothing may be told afterwards."""
        self._words = None

    def _largest(self, number: int) -> int:
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._words)
        return int(largest)

    def gather(self, value: T) -> list[T]:
        """See :class:`Processes`."""
        self.lock_step.settle()
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._words)
        return values

    def from_writer(self, work: Callable[[], T]) -> T:
        """See :class:`Processes`."""
        told: list[Any] = [None, None]
        error: Exception | None = None
        if self.is_writer:
            try:
                told[0] = work()
            except Exception as caught:
                error, told[1] = caught, f"{type(caught).__name__}: {caught}"
        self.lock_step.settle()
        dist.broadcast_object_list(told, src=0, group=self._words)
        if error is not None:
            raise error
        if told[1] is not None:
            raise PeerFailed(told[1])
        return told[0]

    def one_first(self, work: Callable[[], T]) -> T:
        """See :class:`Processes`."""
        if self._local_rank:
            self.gather(None)
        result = work()
        if not self._local_rank:
            self.gather(None)
        return result

    @torch.no_grad()
    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See :class:`Processes`."""
        self.lock_step.settle()
        has = torch.tensor([float(p.grad is not None) for p in parameters])
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
            + [has.to(parameters[0])]
        )
        dist.all_reduce(flat)
        *sums, has = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for parameter, gradient, has_gradient in zip(parameters, sums, has.tolist(), strict=True):
            # None, not 0: AdamW decays the weights of what has a gradient.
            parameter.grad = gradient.view_as(parameter).clone() if has_gradient else None

    @torch.no_grad()
    def copy_from_writer(self, parameters: Sequence[nn.Parameter]) -> None:
        """See :class:`Processes`."""
        self.lock_step.settle()
        for parameter in parameters:
            values: Tensor = parameter.detach().clone()
            dist.broadcast(values, src=0)
            parameter.copy_(values)
