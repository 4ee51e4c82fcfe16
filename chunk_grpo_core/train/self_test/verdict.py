"""What the self-test says: comparisons, its result, its failure, and what to do then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "REMEDY",
    "Comparison",
    "GradientsDiffer",
    "SelfTest",
    "SelfTestFailed",
    "without_effect",
]

REMEDY = (
    "Take off what changes how the model computes (caches between steps, compiled blocks, "
    "attention patches, quantised products), or try another file of it. To train all the same, "
    "switch self_test off."
)
_IN_16_BITS = (
    " This model computes in 16 bits or less, and a small or untrained one may be too rough to be "
    "measured so: in 32 bits the same test tells."
)
_SIGMAS = 4.0


class SelfTestFailed(RuntimeError):
    """Training would go wrong; nothing has been changed."""


class GradientsDiffer(SelfTestFailed):
    """A derivative is not the one that was measured."""

    is_fine = True
    """Whether the model rounds finely; if not, rounding may be to blame, though it rarely is."""


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What was measured; of several derivatives the one that is nearest to its tolerance."""

    derivative: float
    """Of the log-density along a direction, by autograd."""
    difference: float
    """The same by finite differences."""
    error: float
    """Their distance, relative to the larger one (or to the gradient's length)."""
    tolerance: float
    """Largest error that is allowed."""
    ratio_error: float
    """Largest |ratio - 1| of the recorded steps."""
    ratio_limit: float
    """Largest that is allowed."""
    directions: int
    """Derivatives that were compared."""
    cells: int
    """Steps, of different groups, on which they were."""


class Comparison(NamedTuple):
    """One derivative by two ways."""

    derivative: float
    """By autograd."""
    difference: float
    """By finite differences."""
    error: float
    tolerance: float
    where: str
    """What was moved."""

    @classmethod
    def of(
        cls,
        derivative: float,
        difference: float,
        *,
        tolerance: float,
        where: str,
        spread: float = 0.0,
        length: float = 0.0,
    ) -> Comparison:
        """Compare.

        Args:
            derivative: By autograd.
            difference: By finite differences.
            tolerance: Relative, of the error.
            where: What was moved.
            spread: Standard deviation of ``difference`` by rounding, which is allowed for.
            length: Of the gradient, if it is what errors are relative to.
        """
        size = max(abs(derivative), abs(difference), length)
        error = abs(derivative - difference) / size
        return cls(derivative, difference, error, tolerance + _SIGMAS * spread / size, where)

    @property
    def strain(self) -> float:
        """The error as a part of what is allowed."""
        return self.error / self.tolerance

    @property
    def is_good(self) -> bool:
        """Whether the error is allowed."""
        return self.error <= self.tolerance

    def check(self, *, is_fine: bool) -> None:
        """Raise GradientsDiffer if it is not."""
        if not self.is_good:
            error = GradientsDiffer(
                f"self-test: gradients through this model are wrong. Along a direction of "
                f"{self.where} the log-density rises by {self.difference:.4g}, but autograd says "
                f"{self.derivative:.4g}; relative error {self.error:.2g}, allowed "
                f"{self.tolerance:.2g}. {REMEDY}{_IN_16_BITS * (not is_fine)}"
            )
            error.is_fine = is_fine
            raise error


def without_effect(change: float) -> SelfTestFailed:
    """The failure of a model that moves of the adapter do not change, or to no number."""
    return SelfTestFailed(
        f"self-test: moving the LoRA changes the velocity by {change} of its size; the LoRA "
        f"has no effect, or the model fails. {REMEDY}"
    )
