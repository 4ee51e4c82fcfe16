"""What a training will take, from a small part of it that was timed: pure arithmetic, and words.

Legend: P groups in an iteration, G pictures in a group.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import fmean

from ..method.asking import AskConfig
from ..presets.cost import WITH_GRADIENT, Units, units_of
from ..train.config import TrainConfig
from ..train.self_test import SelfTest
from ..train.velocity_norm import CALLS

__all__ = ["Check", "Timed", "duration", "iteration_seconds", "small_config", "whole_config"]

_UPDATES = 2
"""Updates of the part that is tried: the first one of a rollout costs less than later ones."""
_PICTURES = 4
"""Of its groups, at least."""
_TIGHT = 0.92
"""Part of the memory of a device beyond which little is left for anything else."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One iteration that was timed."""

    seconds: float
    """All of it, what listeners take included, without the self-test."""
    update: float
    """Of it, the update."""
    trained: float
    """Sample-steps that went through the model with gradients."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one small try says about a training that has not been done."""

    iterations: int
    pictures: int
    """Of an iteration, P G."""
    seconds_per_iteration: float
    measurements: int
    """Of the held-out prompts: before, after, and those of ``evaluate_every``."""
    seconds_per_measurement: float
    seconds_once: float
    """The self-test, and what the first calls took more than later ones."""
    self_test: SelfTest | None
    """None if it is off, or no step took noise."""
    reward: str
    """Its name; empty if the training needs none."""
    reward_mean: float | None
    reward_spread: float | None
    """Standard deviation inside groups; None if nothing was scored."""
    unscored: int
    """Pictures of the try without a score."""
    tried: int
    """Pictures of the try."""
    batch_size: int
    """Samples in one call of the model, as the settings ask for."""
    fitting: int
    """Samples that fit."""
    peak_gib: float | None
    """Largest memory that tensors took on a CUDA device."""
    memory_gib: float | None
    """Memory of that device."""
    free_gib: float | None
    """Of it, what nobody used when the try was over."""

    @property
    def seconds(self) -> float:
        """Of the whole training, measurements included."""
        trained = self.iterations * self.seconds_per_iteration
        return self.seconds_once + trained + self.measurements * self.seconds_per_measurement

    @property
    def fits(self) -> bool:
        """Whether the batch that was asked for did."""
        return self.fitting >= self.batch_size

    @property
    def sees_differences(self) -> bool | None:
        """Whether the reward tells pictures of a group apart; None if it scored none."""
        return None if self.reward_spread is None else self.reward_spread > 0.0

    @property
    def is_tight(self) -> bool:
        """Whether little memory is left."""
        if self.fitting == 1 < self.batch_size:
            return True
        peak, memory = self.peak_gib, self.memory_gib
        return peak is not None and memory is not None and peak > _TIGHT * memory

    def to_json(self) -> dict[str, object]:
        """All of it, JSON-ready."""
        return {
            **asdict(self),
            "seconds": self.seconds,
            "fits": self.fits,
            "sees_differences": self.sees_differences,
            "is_tight": self.is_tight,
            "advice": self.advice,
        }

    @property
    def advice(self) -> list[str]:
        """What to change before the training, in sentences; empty if nothing."""
        told = []
        if not self.fits:
            told.append(
                f"Memory ran out with {self.batch_size} pictures at once, and {self.fitting} fit: "
                f"set batch_size to {self.fitting} to begin there. The result is the same."
            )
        if self.is_tight:
            told.append(
                "Little memory is left. In this order: a smaller batch_size, smaller pictures, "
                "activation offloading, a lower rank or fewer lora_targets."
            )
        if self.unscored:
            told.append(f"{self.unscored} of {self.tried} pictures got no score: see the log.")
        if self.sees_differences is False:
            told.append(
                "The reward gives all pictures of a group the same score, so nothing can be "
                "learnt: choose another reward, other prompts or larger groups."
            )
        if self.reward and self.reward_spread is None:
            told.append("The reward scored no picture: repair it first.")
        return told

    def lines(self) -> list[str]:
        """All of it, for people."""
        return [
            f"{duration(self.seconds)} in all: {self.iterations} iterations of {self.pictures} "
            f"pictures, {self.seconds_per_iteration:.3g} s each, and {self.measurements} "
            f"measurements of the held-out prompts, {duration(self.seconds_per_measurement)} each.",
            self._memory(),
            self._test(),
            *self._rewards(),
            *self.advice,
            "Nothing was trained and nothing was kept.",
        ]

    def _memory(self) -> str:
        at_once = f"{self.fitting} pictures at once"
        if self.peak_gib is None or self.memory_gib is None or self.free_gib is None:
            return f"Memory: {at_once} fit. The peak is known on CUDA devices only."
        return (
            f"Memory: {at_once} fit; at most {self.peak_gib:.1f} of {self.memory_gib:.1f} GiB were "
            f"used, and {self.free_gib:.1f} GiB are free now."
        )

    def _test(self) -> str:
        test = self.self_test
        if test is None:
            return "Self-test: not done; it is switched off, or no step took noise."
        return (
            f"Self-test: passed. {test.directions} derivatives agree with measured changes within "
            f"{test.error:.2g}; larger errors than {test.tolerance:.2g} would have been seen."
        )

    def _rewards(self) -> list[str]:
        if self.reward_mean is None or self.reward_spread is None:
            return []
        return [
            f"Reward {self.reward}: {self.reward_mean:.4g} on average, with a spread of "
            f"{self.reward_spread:.2g} inside a group, which is what can be learnt from."
        ]


def duration(seconds: float) -> str:
    """A time as people say it: ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"


def small_config(config: TrainConfig) -> TrainConfig:
    """The least of an iteration that has everything in it, with calls as large as the training's.

    One group is as large as a call of the model, or of four if that is less; there are as many
    groups as updates, two at most. Nothing in it asks a person, measures or waits.
    """
    updates = min(config.optimizer.updates_per_rollout, _UPDATES)
    group = min(config.group_size, max(_PICTURES, config.batch_size or config.group_size))
    if config.algorithm == "preference":  # pictures of one click
        group = config.group_size
    keep = config.advantage.keep
    kept = keep and max(1, keep * group // config.group_size)
    return replace(
        whole_config(config),
        prompts_per_iteration=updates,
        group_size=group,
        advantage=replace(config.advantage, keep=kept),
        optimizer=replace(config.optimizer, updates_per_rollout=updates),
    )


def whole_config(config: TrainConfig) -> TrainConfig:
    """The same training; nothing in it asks a person, measures or waits."""
    return replace(
        config,
        run=replace(config.run, stop_on=(), reward_retries=0),
        ask=AskConfig(),
        evaluate_every=0,
        score_while_sampling=False,
    )


def iteration_seconds(
    timed: list[Timed],
    config: TrainConfig,
    small: TrainConfig,
    *,
    remembers_old: bool,
    mixes_times: bool,
) -> float:
    """Seconds of an iteration of a training.

    The update grows with its units of work (``presets/cost.py``), of the steps that were really
    drawn, beside the calls that measure the length of the velocity once; sampling, scoring and the
    rest grow with the pictures.

    Args:
        timed: Iterations of the small part, one or more.
        config: The training.
        small: The small part, see :func:`small_config`.
        remembers_old: See :func:`~chunk_grpo_core.presets.cost.units_of`.
        mixes_times: See there.
    """
    counts = [
        units_of(part, remembers_old=remembers_old, mixes_times=mixes_times)
        for part in (config, small)
    ]
    pictures = [part.prompts_per_iteration * part.group_size for part in (config, small)]
    of_update = [_update(units) * n for units, n in zip(counts, pictures, strict=True)]
    of_rollout = [max(units.rollout, 1.0) * n for units, n in zip(counts, pictures, strict=True)]
    expected = counts[1].trained * pictures[1]
    drawn = fmean(part.trained for part in timed)
    done = of_update[1] * (drawn / expected if expected else 1.0)
    update = fmean(part.update for part in timed) * (of_update[0] + CALLS) / (done + CALLS)
    rest = fmean(part.seconds - part.update for part in timed)
    return update + rest * of_rollout[0] / of_rollout[1]


def _update(units: Units) -> float:
    return units.compared + WITH_GRADIENT * units.trained
