"""Does autograd give the derivatives of the policy that was sampled?

Models written for inference can falsify gradients without an error: tensors overwritten although
backward needs them, attention kernels without a backward pass, steps answered from a cache. So
derivatives are measured: those of the log-density of a recorded step, log p(x_s | x_t). With m =
mean / std and its slope along a direction d of the adapter's parameters (:mod:`.slopes`), the
derivative must be <z, slope>, z = x_s / std - m. What to move along?

- Along the gradient g itself, layer by layer: d = g / |g|^2, so that each layer has the same part
  in the derivative. All parts add up, whereas along a random direction they cancel, and what is
  left drowns in rounding and in curvature (which is even and adds up). This shows gradients that
  are too large, too small or of the wrong sign. Where rounding is small, a cell moves the whole
  adapter at once; else it moves groups of layers whose gradients have about the same size, for what
  one layer adds must be more than the tolerance.
- Tensors whose gradient is zero are moved at random: the velocity must stay what it was.
- What a gradient lacks at right angles to itself (some tokens, half of the outputs) shows along
  other directions or in other densities. Where rounding is small, one random direction is measured,
  to 1e-4 of the gradient's length. Else the sample is put where the density feels the moves most,
  z = slope, and the same moves are compared again.

Legend: <., .> is the mean over latent dimensions, summed over samples, as in the log-density.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from .cells import Cell, Effort
from .directions import along_gradients, at_random, groups_of, idle_tensors, layers_of, named
from .moves import Backward, Direction, Gradients, Model, inner, rms
from .slopes import Slope, Slopes
from .verdict import REMEDY, Comparison, SelfTestFailed, without_effect

__all__ = ["GradientTest"]

_FINE_TOLERANCE, _FINE_LAYER_TOLERANCE = 2e-3, 2e-2
_COARSE_TOLERANCE, _AIMED_TOLERANCE, _POOLED_TOLERANCE = 0.10, 0.20, 0.05
"""Errors of correct gradients: benchmarks/README.md. On the coarse ones, four standard deviations
of rounding come on top."""
_SHORTER = (0.5, 0.2, 0.05)
"""Further fine moves, relative to the usual one; curvature falls with the square."""
_STILL_PART, _STILL_MOVE = 0.1, 0.02
"""Size of a random move of a tensor, relative to its entries or, if these are small, absolute."""
_STILL = 1e-5
"""Largest change of the velocity, relative to it, that such a move may make."""


@dataclass
class GradientTest:
    """The comparisons of one training: :meth:`cell` for one cell after the other, then
    :meth:`close`."""

    model: Model
    effort: Effort
    comparisons: list[Comparison] = field(default_factory=list)
    rounding_of_log_p: float = 0.0
    """Largest standard deviation of the log-density of one sample by rounding."""
    _slopes: Slopes | None = None
    _still: set[int] = field(default_factory=set)
    """Tensors without a gradient that were moved: the velocity stayed what it was."""
    _pooled: list[tuple[float, float, float]] = field(default_factory=list)
    """Derivative, difference and its spread of every group where rounding is large."""

    def cell(self, number: int, cell: Cell, at: Backward) -> None:
        """Compare in one cell.

        Args:
            number: Of the cell, 0-based.
            cell: Where.
            at: Its backward pass.

        Raises:
            SelfTestFailed: A gradient is wrong, or the adapter has no effect.
        """
        norms = at.gradients.norms
        if not (at.here.v_t.isfinite().all() and all(map(math.isfinite, norms))):
            raise without_effect(math.nan)
        idle = idle_tensors(self.model.parameters)
        still = {index for index, size in enumerate(norms) if size == 0.0}
        self._check_still(cell, at, still - idle)
        layers = layers_of(at.gradients, self.model.parameters)
        if not layers:
            return
        whole = along_gradients(at.gradients, layers)
        if self._slopes is None:
            self._slopes = Slopes(self.model)
            self._slopes.calibrate(cell, at, whole)
        measure, effort = self._slopes, self.effort
        groups = effort.fine_groups if measure.is_fine else effort.groups
        directions = [whole]
        if groups > effort.cells or not measure.is_fine:
            parts = groups_of(layers, groups)
            if measure.is_fine or not effort.is_thorough:
                parts = parts[number :: effort.cells]
            directions = [along_gradients(at.gradients, part) for part in parts]
        slopes = [self._compare_moves(measure, cell, at, direction) for direction in directions]
        log_p = measure.of_log_p(cell, at)
        self.rounding_of_log_p = max(self.rounding_of_log_p, log_p)
        if number > 0 and not effort.is_thorough:
            return
        if measure.is_fine:
            self._compare_random(measure, cell, at)
        else:
            self._compare_aimed(cell, at, slopes)

    def close(self) -> Comparison:
        """Compare the sums over all groups; returns what came nearest to its tolerance."""
        if self._pooled:
            derivative, difference, spread = map(sum, zip(*self._pooled, strict=True))
            self._take(
                Comparison.of(
                    derivative,
                    difference,
                    tolerance=_POOLED_TOLERANCE,
                    spread=spread / math.sqrt(len(self._pooled)),
                    where="the whole LoRA",
                )
            )
        return max(self.comparisons, key=lambda comparison: comparison.strain)

    def _compare_moves(
        self, measure: Slopes, cell: Cell, at: Backward, direction: Direction
    ) -> Slope:
        """Compare along a gradient; measure again before calling it wrong.

        A fine move is exact but for its curvature, of which a shorter one has less. A coarse move
        that is too large saturates, and one that is too small drowns in rounding: either makes a
        difference that is too small. Of two moves that saturate, the slope at no move is taken.
        """
        slope = measure.along(cell, at, direction)
        tolerance = self._tolerance(measure)
        comparison = self._comparison(at.gradients, at.z, slope, tolerance)
        for factor in _SHORTER if measure.is_fine else ():
            if comparison.is_good:
                break
            slope = measure.along(cell, at, direction, factor)
            comparison = self._comparison(at.gradients, at.z, slope, tolerance)
        if not measure.is_fine and comparison.derivative > comparison.difference > 0.0:
            first, whole = slope, comparison
            for factor in (0.5, 0.25, 2.0):
                if comparison.is_good:
                    break
                other = measure.along(cell, at, direction, factor)
                again = self._comparison(at.gradients, at.z, other, tolerance)
                if 1.3 * other.h < first.h and again.difference > whole.difference:
                    other = other.of_no_move(first)
                    again = self._comparison(at.gradients, at.z, other, tolerance)
                if again.strain < comparison.strain:
                    slope, comparison = other, again
        self._take(comparison)
        if not measure.is_fine:
            pooled = comparison.derivative, comparison.difference, slope.spread(at.z)
            self._pooled.append(pooled)
        return slope

    def _tolerance(self, measure: Slopes) -> float:
        """Of a move along gradients; the effect of a single layer is small and curved."""
        if not measure.is_fine:
            return _COARSE_TOLERANCE
        return _FINE_LAYER_TOLERANCE if self.effort.is_thorough else _FINE_TOLERANCE

    def _compare_random(self, measure: Slopes, cell: Cell, at: Backward) -> None:
        """Compare along a random direction, to a fraction of the gradient's length."""
        parameters = self.model.parameters
        slope = measure.at_random(cell, at, at_random(parameters, range(len(parameters))))
        if slope is not None:
            self._take(
                Comparison.of(
                    at.gradients.along(slope.direction),
                    inner(at.z, slope.values),
                    tolerance=_FINE_TOLERANCE,
                    length=at.gradients.length,
                    where="the LoRA (a random one)",
                )
            )

    def _compare_aimed(self, cell: Cell, at: Backward, slopes: list[Slope]) -> None:
        """Compare along the same slopes where the density feels them most."""
        total = torch.stack([slope.values / rms(slope.values) for slope in slopes]).sum(0)
        z = total / rms(total)
        aimed = self.model.backward(cell, cell.std * (at.here.mean + z))
        derivative = difference = variance = 0.0
        for slope in slopes:
            size = rms(slope.values)
            energy = len(z) * slope.noise**2 / size / rms(total)  # what noise adds to the aim
            derivative += aimed.gradients.along(slope.direction) / size
            difference += (inner(aimed.z, slope.values) - energy) / size
            variance += (slope.spread(aimed.z) / size) ** 2
        self._take(
            Comparison.of(
                derivative,
                difference,
                tolerance=_AIMED_TOLERANCE,
                spread=math.sqrt(variance),
                where="the LoRA (with another sample)",
            )
        )

    def _comparison(
        self, gradients: Gradients, z: torch.Tensor, slope: Slope, tolerance: float
    ) -> Comparison:
        """Compare along one slope."""
        return Comparison.of(
            gradients.along(slope.direction),
            inner(z, slope.values),
            tolerance=tolerance,
            spread=slope.spread(z),
            where=named(slope.direction, self.model.parameters),
        )

    def _take(self, comparison: Comparison) -> None:
        self.comparisons.append(comparison)
        comparison.check(is_fine=self._slopes is None or self._slopes.is_fine)

    def _check_still(self, cell: Cell, at: Backward, numbers: set[int]) -> None:
        """Move tensors whose gradient is zero; the velocity must not see it."""
        if not numbers - self._still:
            return
        change = self._random_change(cell, at, numbers)
        if change > 0.0:
            again = rms(self.model.moved(cell, {}, 0.0).v_t - at.here.v_t) / rms(at.here.v_t)
            if change > _STILL + 4.0 * again:
                raise self._moved_something(cell, at, numbers, _STILL + 4.0 * again)
        self._still |= numbers

    def _moved_something(
        self, cell: Cell, at: Backward, numbers: set[int], allowed: float
    ) -> SelfTestFailed:
        """Find out which tensor it is."""
        changes = ((self._random_change(cell, at, {n}), {n}) for n in sorted(numbers))
        whole = self._random_change(cell, at, numbers), numbers
        change, culprit = next((pair for pair in changes if pair[0] > allowed), whole)
        return SelfTestFailed(
            "self-test: gradients through this model are wrong. Moving "
            f"{named(culprit, self.model.parameters)} changes the velocity by {change:.2g} of its "
            f"size, but autograd says that nothing depends on it. {REMEDY}"
        )

    def _random_change(self, cell: Cell, at: Backward, numbers: set[int]) -> float:
        parameters = self.model.parameters
        direction = {
            number: d * max(_STILL_PART * rms(parameters[number].detach()), _STILL_MOVE)
            for number, d in at_random(parameters, sorted(numbers)).items()
        }
        moved = self.model.moved(cell, direction, 1.0)
        return rms(moved.v_t - at.here.v_t) / rms(at.here.v_t)
