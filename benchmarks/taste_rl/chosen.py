"""What the preparing runs of PROTOCOL.md decide for the offline arms: learning rate and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from chunk_grpo_core.measure.interval import Interval

from ..race.outcomes import interval_of
from .arms import RATES

__all__ = ["noise_difference", "offline_settings", "screened_rates"]

Row = Mapping[str, Any]


def screened_rates(rows: Sequence[Row], objective: str) -> dict[str, float]:
    """Learning rate -> mean sum of true taste and adherence, of those that were screened."""
    sums = {}
    for rate in RATES:
        of_rate = [row for row in rows if row["run"][0] == f"screen-{objective}-{rate}"]
        if of_rate:
            sums[rate] = fmean(fmean(row["taste"]) + fmean(row["adherence"]) for row in of_rate)
    return sums


def noise_difference(rows: Sequence[Row], name: str) -> Interval | None:
    """Stored minus fresh noise over the pairs that are there, of ``taste`` or ``adherence``; None
    with fewer than two pairs."""
    sides: dict[str, dict[tuple[object, ...], float]] = {"stored": {}, "fresh": {}}
    for row in rows:
        arm, *rest = row["run"]
        if arm.startswith("noise-"):
            sides[arm.removeprefix("noise-")][tuple(rest)] = fmean(row[name])
    pairs = [sides["stored"][key] - value for key, value in sides["fresh"].items()
             if key in sides["stored"]]  # fmt: skip
    return interval_of(pairs) if len(pairs) > 1 else None


def offline_settings(rows: Sequence[Row], objective: str) -> dict[str, object]:
    """The settings of ``dpo`` or ``kto``.

    Raises:
        ValueError: Their learning rates were not screened.
    """
    sums, difference = screened_rates(rows, objective), noise_difference(rows, "taste")
    if len(sums) < len(RATES):
        raise ValueError(
            f"the learning rates of {objective} were not screened; run the arms "
            f"{', '.join(f'screen-{objective}-{rate}' for rate in RATES)} first"
        )
    is_worse = difference is not None and difference.high < 0
    return {
        "optimizer.learning_rate": float(max(sums, key=lambda rate: sums[rate])),
        "preference.noise": "fresh" if is_worse else "stored",
    }
