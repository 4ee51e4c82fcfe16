"""Before the first update: does autograd give the derivative of the policy that was sampled?

Models written for inference can falsify gradients without an error: tensors overwritten although
backward needs them, attention kernels without a backward pass, steps answered from a cache. So one
derivative is measured: that of the log-density of a recorded step, log p(x_s | x_t), along a random
direction d in the space of the adapter's parameters. With m(h) = mean / std when the parameters are
moved by h d, five calls of the model at h times -2, -1, 0, 1, 2 give, with h of the least noise,

    slope = (8 (m(h) - m(-h)) - (m(2h) - m(-2h))) / 12h
    noise = m(2h) + m(-2h) - 4 (m(h) + m(-h)) + 6 m(0),      the rounding of m times sqrt(70),

and the derivative must be <z, slope> with z = x_s / std - m(0). How well can it be known?

- Where rounding is small (float32), to 1e-4 of the gradient's length; 2e-3 is allowed. Wrong
  residuals under checkpointing, the finest known fault, make 3e-3 and more.
- Else (bfloat16, float16, quantised products) the rounding of m drowns <z, slope> for a random z.
  So the sample is put where the density feels the move most, z = slope; 3 % of <slope, slope> plus
  a quarter of the relative noise is allowed, once the noise's own energy is taken off.

What the model computes in is not asked: the noise tells.

Legend: B samples in a micro-batch, N steps, ``*latent`` latent shape; <., .> is the mean over
latent dimensions, summed over samples, as in the log-density.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..method.cancel import CheckCancel, never_cancel
from ..method.noise import derive_seed
from ..method.policy import Velocity
from ..method.replay import replay_step
from ..method.rollout import Trajectory
from ..method.rules import gaussian_log_p
from .batch_limit import BatchLimit

__all__ = ["SelfTest", "SelfTestFailed", "self_test", "test_groups"]

log = logging.getLogger(__name__)

_BATCH = 2
_ATTEMPTS = 6
_CHANGE = 0.005
"""Relative change of the velocity that the first move should make, within a factor of two."""
_FINE_NOISE = 5e-4
"""Largest noise of the slope, relative, that allows the fine test."""
_FINE_TOLERANCE, _COARSE_TOLERANCE = 2e-3, 0.03
"""Correct gradients of six tiny architectures in four types of weights, with guidance up to 6, had
noise of 1e-4 to 4e-4 (float32), 0.02 to 0.1 (float16), 0.1 to 0.5 (bfloat16, fp8), and errors of at
most 4e-4 in float32 and 0.12 times the noise else."""
_LARGEST_RATIO_ERROR = 0.01
"""Rounding makes 1e-4 at most, because a log-density is a mean over the latent's dimensions."""

_REMEDY = (
    "Take off what changes how the model computes (caches between steps, compiled blocks, "
    "attention patches, quantised products), or try another file of it. To train all the same, "
    "switch self_test off."
)


class SelfTestFailed(RuntimeError):
    """Training would go wrong; nothing has been changed."""


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What was measured."""

    derivative: float
    """Of the log-density along the direction, by autograd."""
    difference: float
    """The same by finite differences."""
    error: float
    """Their distance, relative to the larger of ``difference`` and the gradient's length."""
    tolerance: float
    """Largest error that is allowed."""
    ratio_error: float
    """Largest |ratio - 1| of the recorded step."""


class _Point(NamedTuple):
    """One recorded step with moved parameters; float64 on the CPU, shape (B, *latent)."""

    v_t: Tensor
    mean: Tensor
    """In units of std."""


class _Slope(NamedTuple):
    """How the mean of a step depends on the move."""

    h: float
    mean: Tensor
    """m(0)."""
    values: Tensor
    """dm/dh, shape (B, *latent)."""
    noise: float
    """Root mean square of the error of ``values``, relative to theirs."""


def self_test(
    velocity: Velocity,
    parameters: Sequence[nn.Parameter],
    trajectory: Trajectory,
    *,
    device: torch.device | str = "cpu",
    limit: BatchLimit | None = None,
    check_cancel: CheckCancel = never_cancel,
) -> SelfTest:
    """Compare one derivative with a finite difference; adapter and random numbers stay as they are.

    Args:
        velocity: The model, adapter on, as it will be trained.
        parameters: The adapter's.
        trajectory: A group this very policy has sampled, with at least one stochastic step.
        device: Where the model wants its input.
        limit: Samples that fit into memory at once. A test that does not fit raises; it can be
            done again.
        check_cancel: Called after every call of the model.

    Raises:
        SelfTestFailed: No gradient can be computed, the adapter has no effect, the derivative is
            wrong, or the policy is not the one that sampled; the message says what to do.
    """
    limit = limit or BatchLimit()
    step = _middle_step(trajectory)
    samples = trajectory.stochastic[step].nonzero().flatten()[: min(_BATCH, limit.size or _BATCH)]
    std = trajectory.sde.std(*trajectory.grid.pairs()[step])
    direction = _direction(parameters)

    @cache
    def point(h: float) -> _Point:
        with torch.no_grad(), _moved(parameters, direction, h):
            new = replay_step(velocity, trajectory, step, samples, device)
        check_cancel()
        return _Point(_exact(new.v_t), _exact(new.transition.mean) / std)

    slope = _slope(point)
    is_fine = slope.noise <= _FINE_NOISE
    states = trajectory.states
    if not is_fine:
        x_s = std * (slope.mean + slope.values / _rms(slope.values))
        states = states.clone()
        states[step + 1, samples] = x_s.to(states.dtype)
    recorded = trajectory.states[step + 1][samples].to(device)
    try:
        with torch.enable_grad():
            aimed = replace(trajectory, states=states)
            new = replay_step(velocity, aimed, step, samples, device)
            gradients = torch.autograd.grad(new.log_p.sum(), parameters, allow_unused=True)
    except RuntimeError as error:
        if limit.is_out_of_memory(error):
            raise
        raise SelfTestFailed(
            f"self-test: no gradient goes through this model ({error}). {_REMEDY}"
        ) from error
    check_cancel()
    z = states[step + 1][samples].double() / std - slope.mean
    difference = _inner(z, slope.values)
    if not is_fine:
        difference -= len(samples) * slope.noise**2 * _rms(slope.values)
    derivative, length = _along(gradients, direction), _length(gradients)
    log_p = gaussian_log_p(recorded, new.transition).detach().cpu()
    return _judged(
        SelfTest(
            derivative=derivative,
            difference=difference,
            error=abs(derivative - difference) / max(length, abs(difference)),
            tolerance=_FINE_TOLERANCE if is_fine else _COARSE_TOLERANCE + slope.noise / 4,
            ratio_error=float((log_p - trajectory.log_p[step, samples]).expm1().abs().max()),
        )
    )


def test_groups(
    velocity: Velocity,
    parameters: Sequence[nn.Parameter],
    groups: Sequence[Trajectory],
    *,
    device: torch.device | str,
    limit: BatchLimit,
    check_cancel: CheckCancel,
) -> None:
    """:func:`self_test` on the first of some groups that has a step with noise, if there is one."""
    noisy = [group for group in groups if group.stochastic.any()]
    if not noisy:
        log.warning("self_test is on, but no step took noise, so gradients are not tested")
        return
    options = {"device": device, "limit": limit, "check_cancel": check_cancel}
    self_test(velocity, parameters, noisy[0], **options)


def _middle_step(trajectory: Trajectory) -> int:
    """Of the steps that took noise in most samples, the middle one."""
    counts = trajectory.stochastic.sum(1)
    steps = (counts == counts.max()).nonzero().flatten()
    return int(steps[len(steps) // 2])


def _direction(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Draw N(0, 1). Fresh factors B are 0, but the derivative along them is not."""
    generator = torch.Generator().manual_seed(derive_seed("self-test"))
    return [torch.randn(p.shape, generator=generator).to(p) for p in parameters]


@contextmanager
def _moved(
    parameters: Sequence[nn.Parameter], direction: Sequence[Tensor], h: float
) -> Iterator[None]:
    before = [parameter.clone() for parameter in parameters]
    try:
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.add_(d, alpha=h)
        yield
    finally:
        for parameter, values in zip(parameters, before, strict=True):
            parameter.copy_(values)


def _first_move(point: Callable[[float], _Point]) -> float:
    """Find h that changes the velocity a little, or h below which rounding makes the change."""
    here = point(0.0)

    def relative_change(h: float) -> float:
        return _rms(point(h).v_t - here.v_t) / _rms(here.v_t)

    h, change = 1e-3, relative_change(1e-3)
    for _ in range(_ATTEMPTS):
        if _CHANGE / 2 <= change <= 2 * _CHANGE:
            break
        other = h * min(max(_CHANGE / max(change, 1e-30), 1e-3), 1e3)
        other_change = relative_change(other)
        if other < h and other_change > change / 2:
            break
        h, change = other, other_change
    if not 0 < change < math.inf:
        raise SelfTestFailed(
            f"self-test: moving the LoRA changes the velocity by {change} of its size; the LoRA "
            f"has no effect, or the model fails. {_REMEDY}"
        )
    return h


def _slope(point: Callable[[float], _Point]) -> _Slope:
    """Measure the slope with the h that suits: curvature wants it smaller, rounding larger."""
    best = _slope_at(point, _first_move(point))
    for _ in range(_ATTEMPTS):
        smaller = _slope_at(point, best.h / 2) if best.noise > _FINE_NOISE else best
        if smaller.noise >= best.noise / 2:  # curvature falls eightfold
            break
        best = smaller
    larger = best
    for _ in range(_ATTEMPTS):
        if best.noise <= _FINE_NOISE or larger.noise >= 1.5 * best.noise:
            break
        larger = _slope_at(point, 2 * larger.h)
        best = min(best, larger, key=lambda slope: slope.noise)
    return best


def _slope_at(point: Callable[[float], _Point], h: float) -> _Slope:
    here, ahead, behind, far, far_behind = (point(k * h).mean for k in (0, 1, -1, 2, -2))
    values = (8 * (ahead - behind) - (far - far_behind)) / (12 * h)
    noise = far + far_behind - 4 * (ahead + behind) + 6 * here
    relative = _rms(noise) * math.sqrt(130 / 70) / (12 * h) / _rms(values)
    return _Slope(h=h, mean=here, values=values, noise=relative)


def _judged(result: SelfTest) -> SelfTest:
    """Pass a result on if it is good."""
    log.info("self-test: %s", result)
    if not result.error <= result.tolerance:
        raise SelfTestFailed(
            "self-test: gradients through this model are wrong. Along a random direction of the "
            f"LoRA the log-density rises by {result.difference:.4g}, but autograd says "
            f"{result.derivative:.4g}; relative error {result.error:.2g}, allowed "
            f"{result.tolerance:.2g}. {_REMEDY}"
        )
    if not result.ratio_error <= _LARGEST_RATIO_ERROR:
        raise SelfTestFailed(
            "self-test: the model that is trained is not the one that sampled. The probability "
            f"ratio of a recorded step is off by {result.ratio_error:.2g} before any update, "
            f"allowed {_LARGEST_RATIO_ERROR}. {_REMEDY}"
        )
    return result


def _along(gradients: Sequence[Tensor | None], direction: Sequence[Tensor]) -> float:
    pairs = zip(gradients, direction, strict=True)
    return sum(_sum(g * d) for g, d in pairs if g is not None)


def _length(gradients: Sequence[Tensor | None]) -> float:
    return math.sqrt(sum(_sum(g.square()) for g in gradients if g is not None))


def _sum(tensor: Tensor) -> float:
    """In float64, where the tensor is: an adapter can have hundreds of millions of parameters."""
    return tensor.detach().sum(dtype=torch.float64).item()


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _inner(a: Tensor, b: Tensor) -> float:
    return (a * b).flatten(1).mean(1).sum().item()


def _rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()
