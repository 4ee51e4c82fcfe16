"""A finished run: its numbers, what it gained, and what to know before believing them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from torch import Tensor

from ..measure.evaluate import Evaluation, paired_gain
from ..measure.interval import Interval
from ..measure.reward_fell import fallen_in
from ..train.alarms import Alarm, alarms_of
from ..train.config import TrainConfig
from ..train.may_change import Change
from ..version import __version__
from ..watch.comparison import pair_grid
from ..watch.plots import plot_training

__all__ = ["EVALUATION_SEED", "Outcome"]

EVALUATION_SEED = 20_000
"""Noise seed of the first held-out prompt; far from seeds people type for training."""


_SIDES = ("old", "new")


def _without_folder(key: str, value: object) -> object:
    """A setting for the header of a LoRA, which people share: of the picks only their name."""
    return PurePath(value).name if key == "preference.picks" and isinstance(value, str) else value


@dataclass(frozen=True)
class Outcome:
    """A finished run and what it gained on held-out prompts."""

    config: TrainConfig
    model: str
    sampler: str
    """Name of what made the rollouts; see ``method/sampler.py``."""
    reward: str
    iterations: int
    """Iterations done."""
    changes: tuple[Change, ...]
    """Settings that were changed on the way."""
    rows: list[dict[str, Any]]
    """metrics.jsonl."""
    held_out: list[dict[str, Any]]
    """held_out.jsonl."""
    before: Evaluation
    """The base model on the held-out prompts."""
    after: Evaluation
    """The same prompts and noise with the adapter on."""

    @property
    def is_measured(self) -> bool:
        """Whether a reward has scored the held-out prompts; if not, there are only pictures."""
        return self.after.missing < self.after.rewards.numel()

    @property
    def gain(self) -> Interval:
        """Mean paired gain with its 95 % interval; NaN if nothing was measured."""
        if not self.is_measured:
            return Interval(math.nan, math.nan, math.nan)
        return paired_gain(self.before, self.after)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Signs that the run did not learn, the first of each kind."""
        return (*alarms_of(self.rows, self.config), *fallen_in(self.held_out))

    @property
    def warnings(self) -> list[str]:
        """What somebody who reads the gain must know, in sentences."""
        sides = (("before", self.before), ("after", self.after))
        return [
            *(alarm.text for alarm in self.alarms),
            *(
                f"{side.missing} of {side.rewards.numel()} pictures {when} training have no score "
                f"and are left out ({side.error or 'the reward did not say why'})."
                for when, side in sides
                if side.missing and self.is_measured
            ),
        ]

    def warnings_json(self) -> dict[str, object]:
        """Alarms and missing scores, JSON-ready."""
        return {
            "alarms": [alarm.to_json() for alarm in self.alarms],
            "missing_scores": {
                "before": self.before.missing if self.is_measured else 0,
                "after": self.after.missing if self.is_measured else 0,
            },
        }

    @property
    def ratio_error_first_update(self) -> float | None:
        """Largest |ratio - 1| at the first update of any rollout of the run; None if the algorithm
        has no ratio."""
        errors = [row.get("ratio_error_first_update") for row in self.rows]
        return max((error for error in errors if error is not None), default=None)

    def plot(self, *, dark: bool = False) -> Tensor:
        """Training curves with the measurements on held-out prompts."""
        return plot_training(self.rows, held_out=self.held_out, dark=dark)

    def before_after_grid(self) -> Tensor:
        """Held-out prompts, base model above, adapter below; see :func:`pair_grid`."""
        return pair_grid(self.before, self.after)

    def lora_metadata(self) -> dict[str, str]:
        """What the LoRA is and how it was made, as text, for the header of its file.

        ``chunk_grpo_recipe`` holds all settings, by their dotted keys, as the last iteration was
        trained with, and ``chunk_grpo_changes`` which of them were changed on the way; the plain
        entries repeat those people look for. There are no paths and no times in it.
        """
        config = self.config
        settings = [change for change in self.changes if change.key in config.flat()]
        trained = [change for change in settings if change.iteration < self.iterations]
        untrained = {c.key: c.old for c in self.changes if c.iteration >= self.iterations}
        return {
            "base_model": self.model,
            "sampler": self.sampler,
            "reward": self.reward,
            "chunk_grpo_version": __version__,
            "chunk_grpo_recipe": json.dumps(
                {key: _without_folder(key, v) for key, v in {**config.flat(), **untrained}.items()}
            ),
            "chunk_grpo_changes": json.dumps(
                [
                    asdict(change)
                    | {side: _without_folder(change.key, getattr(change, side)) for side in _SIDES}
                    for change in trained
                ]
            ),
            "chunk_plan": ", ".join(map(str, config.plan.sizes if config.plan else ())),
            "steps": str(config.grid.steps),
            "iterations": str(self.iterations),
            "seed": str(config.seed),
            "held_out_seed": str(EVALUATION_SEED),
            "held_out_reward": json.dumps(
                {"before": self.before.mean, "after": self.after.mean} if self.is_measured else None
            ),
        }
