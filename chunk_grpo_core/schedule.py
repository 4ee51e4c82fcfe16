"""Time grids: the noise levels t_0 > t_1 > ... > t_N = 0 that a sample walks down.

Time runs from t = 1 (noise) to t = 0 (data) and the noise level is sigma_t = t. A step goes
t -> s with s < t, so dt = s - t < 0. N steps have N + 1 levels. The last step (s = 0) is always
deterministic and never trained, which leaves N - 1 trainable steps.

References:
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024),
    arXiv 2403.03206v1, Eq. (23): the static shift.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["TimeGrid", "shifted_grid"]

_PURE_NOISE = 0.98


@dataclass(frozen=True, slots=True)
class TimeGrid:
    """Noise levels of one sampling run."""

    sigmas: tuple[float, ...]
    """N + 1 levels, strictly falling, the first 1 (or a little less), the last exactly 0."""

    def __post_init__(self) -> None:
        if len(self.sigmas) < 3:
            raise ValueError(
                f"a time grid needs at least 2 steps (3 sigmas), got {len(self.sigmas)} sigmas"
            )
        if not _PURE_NOISE <= self.sigmas[0] <= 1.0:
            raise ValueError(
                f"the first sigma is {self.sigmas[0]}; samples start from pure noise, so it must "
                f"be 1 (at least {_PURE_NOISE}); use the whole schedule (denoise 1.0)"
            )
        if self.sigmas[-1] != 0.0:
            raise ValueError(f"the last sigma is {self.sigmas[-1]}; it must be 0")
        if not all(s < t for t, s in zip(self.sigmas[:-1], self.sigmas[1:], strict=True)):
            raise ValueError(f"sigmas must fall strictly, got {list(self.sigmas)}")

    @classmethod
    def of(cls, sigmas: Iterable[float]) -> TimeGrid:
        """Build a grid from any iterable of numbers (a ComfyUI SIGMAS tensor, for example)."""
        return cls(tuple(float(sigma) for sigma in sigmas))

    @property
    def steps(self) -> int:
        """N, the number of steps, the deterministic last one included."""
        return len(self.sigmas) - 1

    @property
    def trainable_steps(self) -> int:
        """N - 1, the number of stochastic steps."""
        return self.steps - 1

    def pairs(self) -> list[tuple[float, float]]:
        """The N steps as (t, s), from noise to data."""
        return list(zip(self.sigmas[:-1], self.sigmas[1:], strict=True))


def shifted_grid(steps: int, shift: float = 3.0) -> TimeGrid:
    """Space ``steps`` steps evenly in time, then shift them towards noise.

    ``t' = shift * t / (1 + (shift - 1) * t)``  (Eq. 23, Esser et al.)

    Args:
        steps: N, 2 or more.
        shift: Above 0; 1 keeps the even spacing, 3 is common for FLUX and SD3.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}; it must be 2 or more (the last one is not trained)")
    if not shift > 0:
        raise ValueError(f"shift is {shift}; it must be above 0")
    even = [1.0 - i / steps for i in range(1, steps + 1)]
    shifted = (shift * t / (1.0 + (shift - 1.0) * t) for t in even)
    return TimeGrid((1.0, *shifted))  # rounding would put the first level beside 1 for small shifts
