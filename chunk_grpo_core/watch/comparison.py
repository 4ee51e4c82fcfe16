"""Two models on the same prompts and noise: a table, a plot and pairs of pictures.

Legend: P prompts, S pictures of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..measure.evaluate import Evaluation, paired_gain, prompt_gains, win_rate
from ..measure.interval import Interval
from .pictures import enlargement, image_grid
from .plots import plot_paired_gains

__all__ = ["Comparison", "pair_grid"]


def pair_grid(before: Evaluation, after: Evaluation, count: int = 24, columns: int = 8) -> Tensor:
    """Pairs of rows, one model above, the other below; same caption, same noise, with scores.

    Args:
        before: The base.
        after: What is compared with it.
        count: How many prompts to show, taken evenly from the whole list, not chosen by score.
        columns: Prompts in a row.
    """
    prompts = before.prompts
    chosen = torch.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().long()
    images, labels = [], []
    for row in chosen.split(columns):
        indices = row.tolist()
        images += [before.images[i] for i in indices]
        images += [after.images[i] for i in indices]
        labels += [prompts[i] for i in indices]
        labels += [
            _scores(float(before.rewards[i, 0]), float(after.rewards[i, 0])) for i in indices
        ]
    pairs, width = torch.stack(images), len(chosen[:columns])
    return image_grid(pairs, columns=width, scale=enlargement(pairs, 160), captions=labels)


def _scores(before: float, after: float) -> str:
    if math.isnan(before) and math.isnan(after):  # of a run without a reward, all of them
        return "above: base"
    return f"reward {before:.2f} -> {after:.2f}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The measured difference of two models."""

    before: Evaluation
    """The base."""
    after: Evaluation
    """What is compared with it, on the same prompts and noise; at least 2 prompts."""
    reward: str
    """Name of the judge."""
    noise_seed: int
    """Noise seed of the first prompt; the next one has the next."""

    @property
    def gain(self) -> Interval:
        """Mean paired gain with its 95 % interval."""
        return paired_gain(self.before, self.after)

    @property
    def gains(self) -> Tensor:
        """Gain of each prompt, float64, (P,); NaN where nothing is valid."""
        return prompt_gains(self.before, self.after)

    @property
    def further(self) -> list[str]:
        """Names of the numbers besides the reward that both have."""
        return [name for name in self.before.extras if name in self.after.extras]

    def rows(self) -> list[dict[str, Any]]:
        """One row per prompt: its means ``base`` and ``lora`` and their ``gain``, the same of every
        further number in ``parts``, and the scores of the first picture of both in ``shown``. NaN
        where there is none."""
        numbers = {name: self._means(name) for name in (None, *self.further)}
        return [
            {
                "number": index,
                "prompt": prompt,
                **numbers[None][index],
                "parts": {name: numbers[name][index] for name in self.further},
                "shown": [float(e.rewards[index, 0]) for e in (self.before, self.after)],
            }
            for index, prompt in enumerate(self.before.prompts)
        ]

    def _means(self, extra: str | None) -> list[dict[str, float]]:
        scores = [
            e.rewards if extra is None else e.extras[extra] for e in (self.before, self.after)
        ]
        base, lora = (score.nanmean(1).tolist() for score in scores)
        gains = prompt_gains(self.before, self.after, extra).tolist()
        return [
            {"base": old, "lora": new, "gain": gain}
            for old, new, gain in zip(base, lora, gains, strict=True)
        ]

    def summary(self) -> dict[str, Any]:
        """Mean gain, its 95 % interval, the win rate and what they are measured on."""
        gain = self.gain
        return {
            "reward": self.reward,
            "gain": gain.mean,
            "low": gain.low,
            "high": gain.high,
            "win_rate": win_rate(self.before, self.after),
            "wins": int((self.gains > 0).sum()),
            "prompts": self.before.rewards.shape[0],
            "pictures": self.before.rewards.shape[1],
        }

    def table(self) -> str:
        """Gain, interval, means and win rate of every number, then every prompt.

        Lists in short lines, not a table: they can be read in a narrow node, as Markdown and as
        plain text."""
        names = [(self.reward, None), *((name, name) for name in self.further)]
        digits = self.gain.digits
        prompts = [
            f"- {_gain(row, digits)}: {' '.join(row['prompt'].split())}" for row in self.rows()
        ]
        return "\n\n".join(
            [
                "\n".join(line for title, extra in names for line in self._lines(title, extra)),
                self._conditions(),
                "Gain of every prompt (base to LoRA):",
                "\n".join(prompts),
            ]
        )

    def _lines(self, title: str, extra: str | None) -> list[str]:
        mean: Callable[[Evaluation], float] = (
            (lambda e: e.mean) if extra is None else (lambda e: e.extra_mean(extra))
        )
        gain = paired_gain(self.before, self.after, extra)
        wins, digits = win_rate(self.before, self.after, extra), gain.digits
        return [
            f"- {title}: gain {gain.mean:+.{digits}f}",
            f"  - {gain.interval()}",
            f"  - base {mean(self.before):.{digits}f}, LoRA {mean(self.after):.{digits}f}",
            f"  - win rate {wins:.2f}",
        ]

    def _conditions(self) -> str:
        count, pictures = self.before.rewards.shape
        scored = torch.isfinite(self.before.rewards) & torch.isfinite(self.after.rewards)
        return (
            f"{count} prompts, {pictures} pictures of each, noise seeds {self.noise_seed} to "
            f"{self.noise_seed + count - 1}; pairs without a score: {int((~scored).sum())}."
        )

    def plot(self, *, dark: bool = False) -> Tensor:
        """Draw the gain of every prompt and the mean with its interval."""
        return plot_paired_gains(self.before, self.after, dark=dark)

    def pairs(self) -> Tensor:
        """Show pictures of both; see :func:`pair_grid`."""
        return pair_grid(self.before, self.after)


def _gain(row: dict[str, Any], digits: int) -> str:
    if math.isnan(row["gain"]):
        return "no pair scored"
    return f"{row['gain']:+.{digits}f} ({row['base']:.{digits}f} to {row['lora']:.{digits}f})"
