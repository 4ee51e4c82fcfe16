"""Moves of the adapter, and what they do to a cell: the arithmetic under the self-test.

Legend: B samples of a cell, D latent dimensions, ``*latent`` latent shape; <., .> is the mean over
latent dimensions, summed over samples, as in the log-density.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...method.cancel import CheckCancel
from ...method.policy import Velocity
from ...method.replay import Replay, replay_step
from ..batch_limit import BatchLimit
from .cells import Cell
from .verdict import REMEDY, SelfTestFailed

__all__ = ["Backward", "Direction", "Gradients", "Model", "Point", "inner", "rms"]

Direction = Mapping[int, Tensor]
"""Number of a parameter -> its direction; the others stay where they are."""


class Point(NamedTuple):
    """One cell with moved parameters; float64 on the CPU, shape (B, *latent)."""

    v_t: Tensor
    mean: Tensor
    """In units of std."""


@dataclass(frozen=True)
class Gradients:
    """Of a log-density, summed over the samples of a cell, with respect to every parameter."""

    tensors: Sequence[Tensor | None]

    @cached_property
    def length(self) -> float:
        """L2 norm of all."""
        return math.sqrt(sum(norm**2 for norm in self.norms))

    @cached_property
    def norms(self) -> list[float]:
        """L2 norm of each."""
        return [0.0 if g is None else math.sqrt(_sum(g.square())) for g in self.tensors]

    def along(self, direction: Direction) -> float:
        """The derivative along a direction."""
        tensors = ((self.tensors[number], d) for number, d in direction.items())
        return sum(_sum(g * d) for g, d in tensors if g is not None)


class Backward(NamedTuple):
    """A cell with the parameters as they are."""

    gradients: Gradients
    here: Point
    z: Tensor
    """(x_s - mean) / std, float64, shape (B, *latent)."""
    log_p: Tensor
    """Float32, shape (B,)."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the self-test calls."""

    velocity: Velocity
    parameters: Sequence[nn.Parameter]
    device: torch.device | str
    limit: BatchLimit
    check_cancel: CheckCancel

    def moved(self, cell: Cell, direction: Direction, h: float) -> Point:
        """Replay a cell with the parameters moved by h times a direction."""
        with torch.no_grad(), _moved(self.parameters, direction, h):
            new = self._replay(cell)
        self.check_cancel()
        return _point(new.v_t, new.transition.mean, cell.std)

    def backward(self, cell: Cell, x_s: Tensor | None = None) -> Backward:
        """Replay a cell with gradients.

        Args:
            cell: Where.
            x_s: In place of the recorded states after the step, shape (B, *latent).

        Raises:
            SelfTestFailed: No gradient can be computed.
        """
        if x_s is not None:
            states = cell.trajectory.states.clone()
            states[cell.step + 1, cell.samples] = x_s.to(states.dtype)
            cell = replace(cell, trajectory=replace(cell.trajectory, states=states))
        recorded = cell.trajectory.states[cell.step + 1][cell.samples]
        try:
            with torch.enable_grad():
                new = self._replay(cell)
                tensors = torch.autograd.grad(
                    new.log_p.sum(), list(self.parameters), allow_unused=True
                )
        except RuntimeError as error:
            if self.limit.is_out_of_memory(error):
                raise
            raise SelfTestFailed(
                f"self-test: no gradient goes through this model ({error}). {REMEDY}"
            ) from error
        self.check_cancel()
        here = _point(new.v_t, new.transition.mean, cell.std)
        z = recorded.double() / cell.std - here.mean
        return Backward(Gradients(tensors), here, z, new.log_p.detach().cpu())

    def _replay(self, cell: Cell) -> Replay:
        return replay_step(self.velocity, cell.trajectory, cell.step, cell.samples, self.device)


@contextmanager
def _moved(parameters: Sequence[nn.Parameter], direction: Direction, h: float) -> Iterator[None]:
    before = {number: parameters[number].clone() for number in direction}
    try:
        for number, d in direction.items():
            parameters[number].add_(d, alpha=h)
        yield
    finally:
        for number, values in before.items():
            parameters[number].copy_(values)


def _point(v_t: Tensor, mean: Tensor, std: float) -> Point:
    return Point(v_t.detach().cpu().double(), mean.detach().cpu().double() / std)


def _sum(tensor: Tensor) -> float:
    """In float64, where the tensor is: an adapter can have hundreds of millions of parameters."""
    return tensor.detach().sum(dtype=torch.float64).item()


def inner(a: Tensor, b: Tensor) -> float:
    """<a, b>."""
    return (a * b).flatten(1).mean(1).sum().item()


def rms(tensor: Tensor) -> float:
    """Root mean square."""
    return tensor.square().mean().sqrt().item()
