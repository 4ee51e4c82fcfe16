"""A small group with noise, for the self-test of algorithms whose pictures have no densities."""

from __future__ import annotations

from ..method.noise import Noise, derive_seed
from ..method.rollout import Trajectory, rollout
from ..method.rules import SdeConfig
from ..method.schedule import TimeGrid
from ..method.stream import Stream
from .algorithm import GroupRequest

__all__ = ["noisy_group"]

_SAMPLES = 2


def noisy_group(
    stream: Stream, request: GroupRequest, grid: TimeGrid, sde: SdeConfig | None = None
) -> Trajectory:
    """Sample two pictures with noise in every step but the last.

    Args:
        stream: The model, adapter on.
        request: What they show; its seed is theirs.
        grid: Noise levels.
        sde: The rule of the steps; the default one if None.
    """
    seed = derive_seed(request.noise.seed, "recorded")
    return rollout(
        stream.velocity,
        request.example,
        grid,
        sde or SdeConfig(),
        Noise(False, seed, _SAMPLES),
        request.latent_shape,
        device=stream.device,
        batch_size=stream.batch_size,
        check_cancel=stream.check_cancel,
    )
