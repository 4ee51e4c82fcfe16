"""Time grids: the noise levels t_0 > t_1 > ... > t_N = 0 that a sample walks down.

Time runs from t = 1 (noise) to t = 0 (data) and the noise level is sigma_t = t. A step goes
t -> s with s < t, so dt = s - t < 0. N steps have N + 1 levels. The last step (s = 0) is always
deterministic and never trained, which leaves N - 1 trainable steps.

References:
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024),
    arXiv 2403.03206v1, Eq. (23): the static shift.
    FLUX (Black Forest Labs, 2024), github.com/black-forest-labs/flux: the shift by resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["PURE_NOISE", "TimeGrid", "coarser_grid", "falling_pairs", "flux_shift", "shifted_grid"]

PURE_NOISE = 0.98
"""Lowest noise level that a sample can start from; less leaves a picture in it."""
_MOST_STEPS = 10_000
_LEAST_SHIFT, _MOST_SHIFT = 0.01, 100
"""Beyond them, neighbouring levels of many steps round to the same number."""
_SHOWN = 8


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
        if not PURE_NOISE <= self.sigmas[0] <= 1.0:
            raise ValueError(
                f"the first sigma is {self.sigmas[0]}; samples start from pure noise, so it must "
                f"be 1 (at least {PURE_NOISE}); use the whole schedule (denoise 1.0)"
            )
        if self.sigmas[-1] != 0.0:
            raise ValueError(f"the last sigma is {self.sigmas[-1]}; it must be 0")
        falling_pairs(self.sigmas)

    @classmethod
    def of(cls, sigmas: Iterable[float]) -> TimeGrid:
        """Build a grid from any iterable of numbers (a ComfyUI SIGMAS tensor, for example).

        Raises:
            ValueError: They are no numbers, or no grid.
        """
        values = tuple(sigmas)
        try:
            return cls(tuple(float(sigma) for sigma in values))
        except (TypeError, OverflowError) as error:
            raise ValueError(f"sigmas must be numbers, got {_shown(values)}") from error

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
        return falling_pairs(self.sigmas)


def falling_pairs(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    """Take noise levels as steps (t, s), from more noise to less; they need not reach 1 or 0.

    Raises:
        ValueError: There are fewer than two or too many, one is not in 0..1, or they do not fall.
    """
    if not 2 <= len(sigmas) <= _MOST_STEPS + 1:
        raise ValueError(
            f"there are {len(sigmas)} sigmas; a walk needs at least 2, its start and its end, and "
            f"at most {_MOST_STEPS + 1}"
        )
    for place, sigma in enumerate(sigmas, start=1):
        if not 0.0 <= sigma <= 1.0:
            raise ValueError(f"sigma number {place} is {sigma}; noise levels must be in 0..1")
    pairs = list(zip(sigmas[:-1], sigmas[1:], strict=True))
    for t, s in pairs:
        if not s < t:
            raise ValueError(
                f"sigmas must fall strictly, from noise to data, but {s:.6g} follows {t:.6g} in "
                f"{_shown(sigmas)}"
            )
    return pairs


def _shown(sigmas: Sequence[object]) -> str:
    shown = [f"{s:.6g}" if isinstance(s, float) else f"{s!r:.40}" for s in sigmas[:_SHOWN]]
    return f"[{', '.join(shown)}{', ...' if len(sigmas) > _SHOWN else ''}]"


def shifted_grid(steps: int, shift: float = 3.0) -> TimeGrid:
    """Space ``steps`` steps evenly in time, then shift them towards noise.

    ``t' = shift * t / (1 + (shift - 1) * t)``  (Eq. 23, Esser et al.)

    Args:
        steps: N, 2 to 10,000.
        shift: 0.01 to 100; 1 keeps the even spacing (the linear grid), 3 is common for FLUX and
            SD3, :func:`flux_shift` makes it FLUX's own grid.
    """
    if not 2 <= steps <= _MOST_STEPS:
        raise ValueError(
            f"steps is {steps}; it must be 2 or more (the last one is not trained) and at most "
            f"{_MOST_STEPS}"
        )
    if not _LEAST_SHIFT <= shift <= _MOST_SHIFT:
        raise ValueError(f"shift is {shift}; it must be from {_LEAST_SHIFT} to {_MOST_SHIFT}")
    even = [1.0 - i / steps for i in range(1, steps + 1)]
    shifted = (shift * t / (1.0 + (shift - 1.0) * t) for t in even)
    return TimeGrid((1.0, *shifted))  # rounding would put the first level beside 1 for small shifts


def coarser_grid(grid: TimeGrid, steps: int) -> TimeGrid:
    """Take fewer steps over the same levels, as evenly as they allow.

    Args:
        grid: N steps.
        steps: 2 to N.
    """
    if not 2 <= steps <= grid.steps:
        raise ValueError(f"steps is {steps}; a grid of {grid.steps} steps allows 2 to that number")
    return TimeGrid(tuple(grid.sigmas[round(i * grid.steps / steps)] for i in range(steps + 1)))


def flux_shift(tokens: int, base_shift: float = 0.5, max_shift: float = 1.15) -> float:
    """Shift that FLUX.1-dev uses at a resolution: larger pictures spend more steps at high noise.

    FLUX writes its grid as ``t' = e^mu / (e^mu + 1/t - 1)``, which is the shift e^mu of
    :func:`shifted_grid`; mu is linear in the number of image tokens, also outside the two anchors.

    Args:
        tokens: Image tokens, 1 or more: (height / 16) * (width / 16) for pixels of FLUX.
        base_shift: mu at 256 tokens (256 x 256 pixels).
        max_shift: mu at 4096 tokens (1024 x 1024 pixels).

    Returns:
        e^mu, for example 3.16 at 4096 tokens.
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; a picture has 1 image token or more")
    slope = (max_shift - base_shift) / (4096 - 256)
    return math.exp(base_shift + slope * (tokens - 256))
