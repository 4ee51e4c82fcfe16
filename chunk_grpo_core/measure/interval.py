"""A mean over prompts with its 95 % confidence interval, from Student's t distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

__all__ = ["Interval", "mean_interval", "t_quantile"]

_LEAST, _MOST = 4, 8
"""Digits after the point."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    """NaN with one prompt, as ``high``."""
    high: float

    @property
    def digits(self) -> int:
        """After the point, 4 to 8: they show two figures of the largest of its numbers."""
        numbers = (self.mean, self.low, self.high)
        largest = max((abs(value) for value in numbers if math.isfinite(value)), default=0.0)
        figures = 1 - math.floor(math.log10(largest)) if largest else _LEAST
        return min(_MOST, max(_LEAST, figures))

    def bounds(self, digits: int | None = None) -> str:
        """``+0.0100 to +0.0300``, or that there are none."""
        digits = self.digits if digits is None else digits
        if math.isnan(self.low):
            return "no interval with one prompt" if math.isfinite(self.mean) else "no interval"
        return f"{self.low:+.{digits}f} to {self.high:+.{digits}f}"

    def interval(self) -> str:
        """``95 % interval +0.0100 to +0.0300``, or that there is none."""
        return self.bounds() if math.isnan(self.low) else f"95 % interval {self.bounds()}"


def mean_interval(values: Tensor) -> Interval:
    """Average independent values, (N,); the interval has N - 1 degrees of freedom.

    It covers the true mean 95 times in a hundred when the values are normal, however few they are
    (Student, 1908). One value has no interval: its ends are NaN, as is everything without a value.
    """
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile(0.95, n - 1) * float(values.std()) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


@lru_cache
def t_quantile(probability: float, degrees: int) -> float:
    """The t with P(|T| <= t) = ``probability``, 0 to 1, for 1 or more degrees of freedom.

    Found by bisection of the angle arctan(t / sqrt(degrees)), to the last bits.
    """
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _inside(middle, degrees) < probability else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _inside(angle: float, degrees: int) -> float:
    """P(|T| <= tan(angle) sqrt(degrees)): finite sums (Abramowitz and Stegun, 26.7.3 and
    26.7.4)."""
    is_odd = degrees % 2
    term = math.cos(angle) if is_odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + is_odd, degrees - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total
