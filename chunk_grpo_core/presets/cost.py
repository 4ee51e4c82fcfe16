"""What a training costs, in calls of the model for one sample.

A *unit* is one sample through the model once; with gradients it is three (there, back, and there
again for what checkpoints did not keep). Decoding and measuring are not counted, nor is scoring,
unless the reward asks the model that is trained.

Legend: G samples in a group, K chunks or times, N steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..method.chunks import draw_chunks
from ..method.plan_text import needs_curve
from ..method.policy_reward import units_of_reward
from ..method.reward import Reward
from ..method.windows import noisy_steps, window_chunks
from ..train.config import TrainConfig
from .recipe import Preset

__all__ = ["WITH_GRADIENT", "Units", "preset_units", "units_of"]

WITH_GRADIENT = 3
"""Units of a sample that goes through the model with gradients."""
_DRAWS = 2048
"""Samples of which the mean is taken where chunks are drawn."""


@dataclass(frozen=True)
class Units:
    """Units for one picture, on average."""

    rollout: float
    """Sampling it."""
    compared: float
    """Calls without gradients of what is trained: reference, old policy, ratios."""
    trained: float
    """Sample-steps, or sample-times, with gradients; each is three units."""
    judged: int = 0
    """Calls of a reward that asks the model that is trained."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.rollout + self.compared + WITH_GRADIENT * self.trained + self.judged


def units_of(
    config: TrainConfig,
    *,
    remembers_old: bool = False,
    mixes_times: bool = True,
    reward: Reward | None = None,
) -> Units:
    """Count the units of one picture of a training.

    Args:
        config: A training with one of the algorithms of the library.
        remembers_old: On the CPU log-densities of the rollout are those of the update; elsewhere
            they are measured again.
        mixes_times: Whether the model takes a time for each sample, and a chunk fits into a
            micro-batch, so that its ratio and its gradient need one pass.
        reward: What scores each picture that is trained, if it may ask the model itself.
    """
    if config.algorithm == "preference":  # its pictures have answers
        return _of_preferences(config)
    if config.algorithm == "forward":
        units = _of_forward(config)
    else:
        units = _of_chunks(config, remembers_old, mixes_times)
    return replace(units, judged=units_of_reward(reward) if reward else 0)


def preset_units(preset: Preset) -> Units | None:
    """Units of a picture of a preset as it is; None if its plan is read off a curve."""
    values = {setting.key: setting.value for setting in preset.values}
    if isinstance(values["plan"], str) and needs_curve(values["plan"]):
        return None
    return units_of(TrainConfig.of(values))


def _later(config: TrainConfig) -> tuple[float, float]:
    """Times a picture is trained in all, and of these in updates that are not the first."""
    updates, epochs = config.optimizer.updates_per_rollout, config.optimizer.epochs
    return float(epochs), epochs - 1.0 / updates


def _kept(config: TrainConfig) -> float:
    """Part of the samples that have an advantage."""
    keep = config.advantage.keep
    return 1.0 if keep is None else 2.0 * keep / config.group_size


def _of_forward(config: TrainConfig) -> Units:
    forward, (times_trained, later) = config.forward, _later(config)
    rows = forward.times * _kept(config)
    old = 0.0
    if forward.old == "average":
        old, later = 1.0, times_trained
    elif forward.needs_old:
        updates = config.optimizer.updates_per_rollout
        old = 1.0 if config.optimizer.epochs > 1 else 1.0 - 1.0 / updates
    if forward.objective == "elbo":
        old += later
    shared = 1 if config.share_initial_noise else 0
    rollout, ranked = _rollout(config, shared), forward.rank_steps
    return Units(
        rollout=ranked + _kept(config) * rollout if ranked else rollout,
        compared=rows * (old + forward.needs_reference),
        trained=rows * times_trained,
    )


def _of_preferences(config: TrainConfig) -> Units:
    """A pair goes through together; a group of ``kto``, which is more than a batch, twice."""
    preference, rows = config.preference, config.preference.times
    is_measured_first = preference.objective == "kto" and rows > 1
    epochs = float(config.optimizer.epochs)
    return Units(
        rollout=0.0, compared=rows * (1.0 + is_measured_first * epochs), trained=rows * epochs
    )


def _of_chunks(config: TrainConfig, remembers_old: bool, mixes_times: bool) -> Units:
    assert config.plan is not None
    plan, objective = config.plan, config.objective
    times_trained, later = _later(config)
    window = window_chunks(config.window, plan, 0, config.seed)
    drawn = draw_chunks(plan, config.chunk_fraction, _DRAWS, 0, window)
    steps = float(plan.spread(drawn).sum(1).float().mean())
    steps *= 1.0 if objective.has_penalty else _kept(config)
    noisy = noisy_steps(config.noise, plan, window, drawn)
    first = int(noisy.any(0).nonzero()[0]) + 1
    old = not remembers_old and times_trained * config.optimizer.updates_per_rollout > 1
    if config.optimizer.recompute_log_p is not None:
        old = config.optimizer.recompute_log_p
    needs_two = objective.ratio == "chunk" and max(plan.sizes) > 1 and not mixes_times
    return Units(
        rollout=_rollout(config, first if config.share_initial_noise else 0),
        compared=steps * (old + objective.needs_reference + later * needs_two),
        trained=steps * times_trained,
    )


def _rollout(config: TrainConfig, shared_steps: int) -> float:
    """Steps of a picture; those before the first noise are taken once for a shared start."""
    return config.grid.steps - shared_steps * (1.0 - 1.0 / config.group_size)
