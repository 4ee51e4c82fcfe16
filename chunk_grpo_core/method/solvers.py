"""Solvers of the probability-flow ODE, each written as an Euler step along another velocity.

DPM-Solver++(2M) predicts the data x_0 = x_t - t v_t and extrapolates it in the half-log-SNR
lambda = log((1 - t) / t). With h = lambda_s - lambda_t, h' that of the step before, which started
at t', its update is

    x_s = (s / t) x_t + (1 - s / t) D,    D = x_0 + h / (2 h') (x_0 - x_0'),

and since x_t + (s - t) v_t = (s / t) x_t + (1 - s / t) x_0, this is the Euler step along
(x_t - D) / t. It needs one call of the model for each step, as Euler does. On a shifted grid of N
steps its error falls as log(N) / N^2, Euler's as 1 / N; the logarithm comes from the ends, where
lambda is infinite.

Legend: B samples in one call.

References:
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al.,
    2022), arXiv 2211.01095, Algorithm 2 (2M).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..settings.declared import shortened

__all__ = ["SOLVERS", "LastStep", "Solver", "solver_named"]


class LastStep(NamedTuple):
    """The step before the present one, for solvers that look back."""

    t: float
    """Where it started."""
    x_t: Tensor
    """Its state, float32, shape (B, *latent)."""
    v_t: Tensor
    """Its velocity, float32, broadcastable to x_t."""
    is_ode: Tensor
    """Samples that took it without noise, bool, broadcastable to x_t; only they may look back."""

    @property
    def x_0(self) -> Tensor:
        """The data it predicted, shape (B, *latent)."""
        return self.x_t - self.t * self.v_t


Solver = Callable[[Tensor, Tensor, float, float, LastStep | None], Tensor]
"""(x_t, v_t, t, s, last step or None) -> the velocity to take an Euler step along."""


def euler(x_t: Tensor, v_t: Tensor, t: float, s: float, last: LastStep | None) -> Tensor:
    """Follow the velocity at t: first order."""
    return v_t


def dpm2(x_t: Tensor, v_t: Tensor, t: float, s: float, last: LastStep | None) -> Tensor:
    """DPM-Solver++(2M): second order.

    Exactly Euler where nothing can be extrapolated: at the first step, after the step from t = 1
    (lambda is minus infinity there), into s = 0, and for samples whose last step had noise.
    """
    if last is None or last.t >= 1.0 or s <= 0.0:
        return v_t
    h, h_last = _half_log_snr(s) - _half_log_snr(t), _half_log_snr(t) - _half_log_snr(last.t)
    bend = (x_t - t * v_t - last.x_0) * (h / (2.0 * h_last) / t)
    return torch.where(last.is_ode, v_t - bend, v_t)


def _half_log_snr(t: float) -> float:
    return math.log((1.0 - t) / t)


SOLVERS: dict[str, Solver] = {"euler": euler, "dpm2": dpm2}


def solver_named(name: str) -> Solver:
    """Look a solver up.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver is {shortened(name)}; it must be one of {', '.join(SOLVERS)}")
    return SOLVERS[name]
