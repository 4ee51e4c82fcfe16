"""Offline preferences: train on pictures that a person has judged, without rollouts.

1. Take pictures of one click: pairs (``dpo``), or liked and disliked ones (``kto``).
2. Noise them at K levels, with the noise that they began with where it is known.
3. Measure the reference, which is the model without its adapter.
4. Stream the gradient of the preference loss (``method/preference.py``).

A group is one click (``prompts/judged.py``), and its answers stand in for scores: no reward is
asked while it trains. What the reward of the run says of held-out prompts, before and after, is a
measurement. A group is not divided between processes, because its pictures are compared.

Legend: G pictures in a group, K times of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..method.matching_stream import MatchingTask, with_reference_velocity
from ..method.matching_times import NoisedTimes, draw_times
from ..method.noise import derive_seed, noise_of_batch
from ..method.policy import Policy, base_model
from ..method.preference_stream import PreferenceMeasurement, accumulate_preferences
from ..method.rollout import Trajectory
from ..method.stream import Stream
from ..prompts.judged import Judged
from .algorithm import GroupRequest, SampledGroup
from .noisy_group import noisy_group
from .preference_settings import PreferenceSettings, check_preference

__all__ = ["JudgedLatents", "Preference"]


@dataclass(frozen=True)
class JudgedLatents:
    """Judged pictures as the model sees them."""

    of: Mapping[str, Tensor]
    """Hash of a picture -> its latent, CPU float32, shape (*latent)."""
    scaled: frozenset[str] = frozenset()
    """Pictures of another size, which were scaled: the noise that they began with is not that of
    their latents."""


class Preference:
    """See :class:`~.algorithm.Algorithm`."""

    def __init__(self, config: PreferenceSettings, latents: JudgedLatents | None = None) -> None:
        """Check the settings.

        Args:
            config: Those that preferences read.
            latents: Of the judged pictures. None only checks settings: it cannot train.

        Raises:
            ValueError: A setting of another algorithm is set, there are more times than levels, or
                pictures of a pair are left over.
        """
        check_preference(config)
        self._config, self._latents = config, latents

    old_decay = None
    """See :class:`~.algorithm.Algorithm`: nothing is sampled."""
    sampler = None
    """See :class:`~.algorithm.Algorithm`: the gain is measured with Euler steps."""

    def doubts(self, model: str) -> list[str]:
        """See :class:`~.algorithm.Algorithm`."""
        return []

    def sample(self, stream: Stream, request: GroupRequest) -> Trajectory:
        """See :class:`~.algorithm.Algorithm`: judged pictures instead of a rollout.

        Raises:
            ValueError: There are no latents, the prompt carries no judged pictures, or none that
                the objective can use, or the group is divided between processes.
        """
        names, is_better = self._drawn(request)
        x_0 = torch.stack([self._latent(name) for name in names])
        noised = self._noised(request, names)
        ends = Trajectory.of_ends(request.example, self._config.grid, noised.eps[0], x_0)
        return replace(ends, answers=torch.where(is_better, 1.0, -1.0))

    def recorded(self, stream: Stream, group: SampledGroup) -> Trajectory:
        """See :class:`~.algorithm.Algorithm`: a small group with noise, which has densities."""
        return noisy_group(stream, group.request, self._config.grid)

    def task(self, group: SampledGroup, advantages: Tensor, weight: float) -> MatchingTask:
        """See :class:`~.algorithm.Algorithm`; the advantages are the answers."""
        request, x_0 = group.request, group.trajectory.x_0
        noised = self._noised(request, self._drawn(request)[0])
        return MatchingTask(request.example, x_0, noised, advantages, weight)

    def prepare(self, stream: Stream, task: MatchingTask, policy: Policy) -> MatchingTask:
        """See :class:`~.algorithm.Algorithm`: the reference."""
        with base_model(policy):
            return with_reference_velocity(stream, task)

    def gradient(
        self, stream: Stream, task: MatchingTask, *, scale: float, update: int
    ) -> PreferenceMeasurement:
        """See :class:`~.algorithm.Algorithm`."""
        return accumulate_preferences(stream, task, self._config.preference, scale=scale)

    def report(self, measured: PreferenceMeasurement, iteration: int) -> dict[str, object]:
        """See :class:`~.algorithm.Algorithm`."""
        worse = measured.passes - measured.better
        return {
            "preference_loss": measured.loss / max(measured.losses, 1),
            "preference_accuracy": measured.right / max(measured.losses, 1),
            "implicit_reward_better": measured.better_reward / max(measured.better, 1),
            "implicit_reward_worse": measured.worse_reward / max(worse, 1),
            "matching_error": measured.error / max(measured.passes, 1),
            "trained_passes": measured.passes,
        }

    def _drawn(self, request: GroupRequest) -> tuple[list[str], Tensor]:
        """The pictures of a group, and whether each was preferred, bool, shape (G,)."""
        size, judged = self._config.group_size, Judged.of(request.example)
        if request.samples != slice(0, size):
            raise ValueError(
                "the algorithm preference compares the pictures of a group, which cannot be divided"
                " between processes; leave out --split-groups"
            )
        seed = derive_seed(self._config.seed, "judged", request.iteration, request.number)
        dice = torch.Generator().manual_seed(seed)
        better, worse = _in_order(judged.better, dice), _in_order(judged.worse, dice)
        if self._config.preference.objective == "dpo" and not judged.is_comparison:
            raise ValueError(
                f'preference.objective is "dpo", but a click on {request.example.text!r:.200} '
                'compares no pictures; use "kto", which takes likes and dislikes'
            )
        sides = [side for side in (better, worse) if side]
        names = [
            sides[place % len(sides)][place // len(sides) % len(sides[place % len(sides)])]
            for place in range(size)
        ]
        return names, torch.tensor([sides[place % len(sides)] is better for place in range(size)])

    def _noised(self, request: GroupRequest, names: list[str]) -> NoisedTimes:
        """Levels and noise of the pictures of a group."""
        config, known = self._config, Judged.of(request.example).noise
        seed = derive_seed(config.seed, "preference", request.iteration, request.number)
        noised = draw_times(
            config.preference,
            config.grid.sigmas[:-1],
            request.latent_shape,
            range(config.group_size),
            seed,
        )
        if config.preference.noise == "stored":
            for place, name in enumerate(names):
                if (start := known.get(name)) is not None and not self._is_scaled(name):
                    x_1 = noise_of_batch(start.seed, start.index, request.latent_shape)
                    if x_1 is not None:
                        noised.eps[:, place] = x_1
        return noised

    def _latent(self, name: str) -> Tensor:
        if self._latents is None or name not in self._latents.of:
            raise ValueError(
                f"there is no latent of the judged picture {name[:12]}...; hand the latents over: "
                "Preference(config, judged_latents(...))"
            )
        return self._latents.of[name]

    def _is_scaled(self, name: str) -> bool:
        return self._latents is not None and name in self._latents.scaled


def _in_order(names: tuple[str, ...], dice: torch.Generator) -> list[str]:
    return [names[place] for place in torch.randperm(len(names), generator=dice).tolist()]
