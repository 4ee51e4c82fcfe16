"""Finite differences: how the mean of a cell depends on a move of the adapter.

With m(h) = mean / std when the parameters are moved by h d, two calls of the model give

    slope = (m(h) - m(-h)) / 2h,    with rounding 1 / (sqrt(2) h) times that of m.

What the model computes in is not asked: the noise of a small move tells, m(h) + m(-h) - 2 m(0),
which is sqrt(6) times the rounding of m. Where it is small (float32), moves of 0.3 % of the
velocity are exact to 1e-4. Else (bfloat16, float16, quantised products) they must be larger, for
in bfloat16 a layer does not feel what is smaller than its rounding; at 2 % both rounding and
curvature are bearable.

Legend: B samples of a cell, ``*latent`` latent shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .cells import Cell
from .moves import Backward, Direction, Model, Point, inner, rms
from .verdict import REMEDY, SelfTestFailed, without_effect

__all__ = ["Slope", "Slopes"]

_FINE_MOVE, _COARSE_MOVE, _RANDOM_MOVE = 0.003, 0.02, 0.003
"""Relative change of the velocity that a move should make, within a factor."""
_NEAR_COARSE, _NEAR_FINE = (0.4, 2.5), (0.1, 4.0)
"""That factor, at least and at most."""
_ATTEMPTS = 6
_FINE_CURVATURE = 0.1
"""Largest noise of a fine move, relative to it, of a model that rounds finely."""
_SMALLER_STILL = 0.125
"""A second move that tells curvature from rounding, relative to the first."""
_CURVATURE, _SMALLER = (0.05, 0.5), (0.25, 0.5)
"""Largest even part of a fine and of a coarse move, relative to it; one that has more is made
smaller by this factor, a coarse one once."""
_SEEN = 2.0
"""A change of the velocity counts if it is larger than so many times the rounding."""
_OTHER_VELOCITY = 0.01
"""Largest even part of a move, relative to the velocity, rounding left out."""
_RANDOM_NOISE = 5e-4
"""Largest noise of a slope along a random direction, relative to it, that says anything."""
_COSINE = 0.25
"""First guess of that between z and the change of the mean along the gradient."""


class Slope(NamedTuple):
    """How the mean of a cell depends on a move."""

    direction: Direction
    values: Tensor
    """dm/dh, shape (B, *latent)."""
    noise: float = 0.0
    """Standard deviation of the entries of ``values`` by rounding."""
    h: float = 0.0
    """Of the move."""

    def spread(self, z: Tensor) -> float:
        """Standard deviation of <z, values> by rounding."""
        return rms(z) * self.noise * math.sqrt(len(z) / z[0].numel())

    def of_no_move(self, farther: Slope) -> Slope:
        """Slope at h = 0 of a mean that saturates, so that slopes fall in proportion to h.

        Args:
            farther: By a longer move along the same direction.
        """
        weight = self.h / (farther.h - self.h)
        return Slope(
            self.direction,
            (1.0 + weight) * self.values - weight * farther.values,
            math.hypot((1.0 + weight) * self.noise, weight * farther.noise),
        )


@dataclass
class Slopes:
    """Measures slopes, and learns from them how the model rounds and how far to move."""

    model: Model
    is_fine: bool = True
    """Whether the model rounds finely."""
    rounding: float = 0.0
    """Standard deviation of the velocity by rounding, relative to it; 0 of a fine model."""
    _cosine: float = _COSINE
    _first: Slope | None = None
    """Measured on the way."""

    def calibrate(self, cell: Cell, at: Backward, direction: Direction) -> None:
        """Find out how the model rounds, from a small move, and from a smaller one if that is
        curved: of a smaller move rounding is a larger part, and curvature a smaller one."""
        size, roundings = rms(at.here.v_t), []
        for move in (_FINE_MOVE, _FINE_MOVE * _SMALLER_STILL):
            h, ahead, behind = self._pair(cell, at, direction, move)
            change = rms(ahead.v_t - behind.v_t) / 2.0 / size
            even = rms(ahead.v_t + behind.v_t - 2.0 * at.here.v_t) / size
            if even <= _FINE_CURVATURE * 2.0 * change and change > 0.0:
                break
            roundings.append(min(even / math.sqrt(6.0), math.sqrt(2.0) * change))
        else:
            self.is_fine, self.rounding = False, roundings[0] or roundings[1]
            return
        if _NEAR_FINE[0] <= change / move <= _NEAR_FINE[1]:
            self._first = Slope(direction, (ahead.mean - behind.mean) / (2.0 * h))
        else:
            self._cosine *= move / change

    def along(self, cell: Cell, at: Backward, direction: Direction, factor: float = 1.0) -> Slope:
        """Measure along a gradient.

        Args:
            cell: Where.
            at: Its backward pass.
            direction: Along the gradient of a part of the adapter.
            factor: Size of the move, relative to the usual one.

        Raises:
            SelfTestFailed: The adapter has no effect, or gradients change the velocity.
        """
        if factor == 1.0 and self._first and self._first.direction is direction:
            return self._first
        move = factor * (_FINE_MOVE if self.is_fine else _COARSE_MOVE)
        least, most = _NEAR_FINE if self.is_fine else _NEAR_COARSE
        size, is_smaller, slope, change, even = rms(at.here.v_t), False, None, 0.0, 0.0
        shorter: tuple[Slope, float, float, float] | None = None
        first: tuple[Slope, float, float, float] | None = None
        for _ in range(_ATTEMPTS):
            h, ahead, behind = self._pair(cell, at, direction, move)
            change = rms(ahead.v_t - behind.v_t) / 2.0 / size
            if shorter and not self._goes_on(h, change, *shorter[:2]):
                slope, change, even, self._cosine = shorter
                break
            if not math.isfinite(change):
                break
            even = rms(ahead.v_t + behind.v_t - 2.0 * at.here.v_t) / size
            noise = self.rounding * size * cell.velocity_in_std / (math.sqrt(2.0) * h)
            slope = Slope(direction, (ahead.mean - behind.mean) / (2.0 * h), noise, h)
            if change > (shorter[1] if shorter else 0.0):
                shorter = slope, change, even, self._cosine
                first = first or shorter
            curvature = math.sqrt(max(even**2 - 6.0 * self.rounding**2, 0.0))
            if not least <= change / move <= most:
                self._cosine *= min(max(move / max(change, 1e-30), 1e-3), 30.0)
            elif curvature > _CURVATURE[not self.is_fine] * 2.0 * change and not is_smaller:
                move *= _SMALLER[not self.is_fine]
                is_smaller = not self.is_fine
            else:
                break
        if first and not _SEEN * self.rounding < change < math.inf:
            slope, change, even, self._cosine = first  # longer moves tell nothing, and no length
        if slope is None or not 0.0 < change < math.inf:
            raise without_effect(change)
        if even / 2.0 > _OTHER_VELOCITY + 2.5 * self.rounding:
            self._check_velocity(cell, at)  # or the move is only curved
        return slope

    def _check_velocity(self, cell: Cell, at: Backward) -> None:
        """Compare the velocity without gradients with that of the backward pass."""
        change = rms(self.model.moved(cell, {}, 0.0).v_t - at.here.v_t) / rms(at.here.v_t)
        if not change <= _OTHER_VELOCITY + 2.5 * self.rounding:
            raise SelfTestFailed(
                "self-test: with gradients this model gives another velocity than without, off by "
                f"{change:.2g} of its size, so the model that is trained is not the one that "
                f"sampled. {REMEDY}"
            )

    def at_random(self, cell: Cell, at: Backward, direction: Direction) -> Slope | None:
        """Measure along a random direction; None if rounding does not allow it.

        Five calls (one is the backward pass) leave out curvature up to the fourth order.
        """
        size = at.gradients.length * math.sqrt(at.z[0].numel() / len(at.z))  # expected of the slope
        h = _RANDOM_MOVE * rms(at.here.v_t) * cell.velocity_in_std / size
        for _ in range(_ATTEMPTS):
            points = [self.model.moved(cell, direction, k * h).mean for k in (1, -1, 2, -2)]
            ahead, behind, far, far_behind = points
            values = (8 * (ahead - behind) - (far - far_behind)) / (12 * h)
            noise = far + far_behind - 4 * (ahead + behind) + 6 * at.here.mean
            of_values = rms(noise) * math.sqrt(130 / 70) / (12 * h)
            if of_values <= _RANDOM_NOISE * rms(values):
                return Slope(direction, values)
            h /= 2.0
        return None

    def of_log_p(self, cell: Cell, at: Backward) -> float:
        """Standard deviation of the log-density of one sample by rounding, of two replays."""
        of_mean = self.rounding * rms(at.here.v_t) * cell.velocity_in_std
        return math.sqrt(2.0 / at.z[0].numel()) * rms(at.z) * of_mean

    def _goes_on(self, h: float, change: float, shorter: Slope, before: float) -> bool:
        """Whether a longer move changes the velocity further, and not only up to a bound; of
        changes that drown in rounding nobody knows as long as they are numbers."""
        if not math.isfinite(change):
            return False
        growth = h / shorter.h
        is_seen = before > _SEEN * self.rounding
        return growth <= 2.0 or not is_seen or change >= 0.5 * growth * before

    def _pair(
        self, cell: Cell, at: Backward, direction: Direction, move: float
    ) -> tuple[float, Point, Point]:
        """h of a move of about this size, and the cell at h and -h."""
        size = inner(at.z, at.z) / rms(at.z)
        per_move = size * rms(at.here.v_t) * cell.velocity_in_std
        h = self._cosine * move * per_move / at.gradients.along(direction)
        return h, self.model.moved(cell, direction, h), self.model.moved(cell, direction, -h)
