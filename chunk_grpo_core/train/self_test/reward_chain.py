"""Does a score belong to the sample that it is used for? Latents, pictures, scores, once in a run.

Of one group, of the first iteration, with G samples:

1. Every sample that has a score is decoded once more, alone: it must give the picture that was
   scored, and not that of another sample.
2. Pictures are scored once more, each alone: each must get the score that its advantage came from.
   The best, the worst and two others always are; all of the others too, unless the reward is remote
   or slow (:data:`_SHARE`). Where all were asked, two scores that were exchanged are found however
   near they are. A reward that ranks the pictures of a group gets the whole group in another
   order. One that answers differently each time is only warned of.
3. If the policy can encode pictures, the latents of the best and the worst must come back from the
   pictures as they are, and not from them inverted, mirrored, upside down or with red and blue
   exchanged.

A decoder that is wrong in another way, or whose encoder is wrong in the same way, is not noticed,
nor is a reward that always judges something else than it should.

Legend: G samples in a group, H W picture size.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...algorithms.algorithm import SampledGroup
from ...method.noise import derive_seed
from ...method.policy import PictureEncoder, Policy
from ...method.reward import Reward, RewardBatch, is_groupwise, is_remote, score_or_mask
from ...method.rollout import Trajectory
from .verdict import SelfTestFailed

__all__ = ["RewardChain"]

log = logging.getLogger(__name__)

_SAME = 0.1
"""Largest change of a picture or of a score, relative to the differences inside the group."""
_SAME_PICTURE, _SAME_SCORE = 2.0 / 255.0, 1e-3
"""The same in units of pictures (0 to 1) and relative to scores, if the group hardly differs."""
_NEARER, _VISIBLE = 2.0, 1e-3
"""A picture is that of another sample if it is nearer to it by this factor, and if its own is
farther than this (of 0 to 1)."""
_NEARER_SCORES = 20.0
"""Scores are exchanged if, in order of their size, they are nearer by this factor."""
_ROUNDING = 1e-6
"""Of a score, relative to it."""
_ALWAYS = 4
"""Samples whose score is asked for again whatever that costs."""
_SHARE = 0.01
"""Of the time that sampling took: as long as asking again has taken less, it goes on."""
_READABLE, _BETTER = 0.5, 0.8
"""An encoder is believed if its latents are nearer than this; a change of the picture is found if
it brings the latents nearer by this factor."""
_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda images: images,
    "inverted": lambda images: 1.0 - images,
    "with red and blue exchanged": lambda images: images.flip(-1),
    "mirrored": lambda images: images.flip(2),
    "upside down": lambda images: images.flip(1),
}
"""Of pictures (B, H, W, 3) in 0..1."""
_REMEDY = "To train all the same, switch self_test off."


@dataclass
class RewardChain:
    """Keeps a group as it was scored, and checks it when its scores are about to be used."""

    policy: Policy
    reward: Reward
    _group: Trajectory | None = None
    _images: Tensor | None = None

    def keep(self, group: Trajectory, images: Tensor) -> None:
        """Remember a group that was scored, in place of the one before; images (G, H, W, 3)."""
        self._group, self._images = group, images

    def check(
        self, groups: Sequence[SampledGroup], rewards: Sequence[RewardBatch], seconds: float
    ) -> None:
        """Check the group that was kept, and forget it.

        Args:
            groups: Of this process, with the kept one among them.
            rewards: Of every group of the iteration: what advantages are made of.
            seconds: That sampling took.

        Raises:
            SelfTestFailed: A picture, a score or the decoder is not the right one.
        """
        group, images = self._group, self._images
        self._group = self._images = None
        request = next((g.request for g in groups if g.trajectory is group), None)
        if group is None or images is None or request is None:
            return
        of_group = rewards[request.number]
        values, valid = of_group.values[request.samples], of_group.valid[request.samples]
        scored = (valid & images.isfinite().flatten(1).all(1)).nonzero().flatten()
        if not len(scored):
            return
        order = _in_order(values, scored)
        self._check_pictures(group, images, order)
        if group.answers is None:
            self._check_scores(group, images, values, order, seconds)
        self._check_decoder(group, images, order[:2])

    def _check_pictures(self, group: Trajectory, images: Tensor, samples: Tensor) -> None:
        kept = images[samples]
        for place, sample in enumerate(samples.tolist()):
            picture = self.policy.decode(group.x_0[sample : sample + 1])
            distances = (kept - picture).square().flatten(1).mean(1).sqrt()
            own, nearest = float(distances[place]), int(distances.argmin())
            is_another = own > max(_NEARER * float(distances[nearest]), _VISIBLE)
            if is_another or own > max(_SAME * float(distances.max()), _SAME_PICTURE):
                owner = int(samples[nearest]) + 1
                other = "" if nearest == place else f", it is that of sample {owner}"
                raise SelfTestFailed(
                    f"self-test: the picture of sample {sample + 1} that was scored is not the one "
                    f"that its latent gives when it is decoded again{other} (they differ by "
                    f"{own:.2g} on average, where black and white differ by 1). The decoder mixes "
                    f"up the samples of a batch, or draws random numbers. {_REMEDY}"
                )

    def _check_scores(
        self, group: Trajectory, images: Tensor, values: Tensor, order: Tensor, seconds: float
    ) -> None:
        """``values`` are the scores (G,), ``order`` the samples that have one, whom to ask first
        first."""

        def asked(samples: Tensor, seconds: float = math.inf) -> Tensor:
            end, answers = time.monotonic() + seconds, []
            if is_groupwise(self.reward):
                drawn, everyone = _drawn(len(images)), [group.example] * len(images)
                together = score_or_mask(self.reward, images[drawn], everyone).known
                return together[drawn.argsort()][samples]
            for sample in samples.tolist():
                if len(answers) >= _ALWAYS and time.monotonic() >= end:
                    break
                picture = images[sample : sample + 1]
                answers.append(score_or_mask(self.reward, picture, [group.example]).known)
            return torch.cat(answers)

        first = asked(order, 0.0 if is_remote(self.reward) else _SHARE * seconds)
        log.info("self-test: %d of %d scores were asked for again", len(first), len(order))
        samples = order[: len(first)]
        first, samples = first[known := first.isfinite()], samples[known]
        if not len(first):
            return
        recorded = values[samples]
        allowed = _allowed(first, recorded, values[order])
        if _differ(first, recorded) <= allowed:
            return
        second = asked(samples)
        worst = int((first - recorded).abs().argmax())
        told = (
            f"sample {int(samples[worst]) + 1} was trained with a score of "
            f"{float(recorded[worst]):.4g}, but {self.reward.name} gives the same picture "
            f"{float(first[worst]):.4g}"
        )
        if not _differ(first, second) <= allowed:
            log.warning("%s, and then %.4g: its scores are partly chance", told, second[worst])
            return
        raise SelfTestFailed(
            f"self-test: {told} when it is asked again, with this one alone. It mixes up the "
            "pictures of a batch, or its scores depend on the other pictures. Let it judge each "
            f"picture on its own. {_REMEDY}"
        )

    def _check_decoder(self, group: Trajectory, images: Tensor, samples: Tensor) -> None:
        if not isinstance(self.policy, PictureEncoder):
            return
        x_0, pictures = group.x_0[samples], images[samples]
        errors = {}
        for name, change in _CHANGES.items():
            latents = self.policy.encode(change(pictures))
            if latents is None:
                return
            errors[name] = float((latents.cpu().float() - x_0).norm() / x_0.norm())
        best = min(errors, key=lambda name: errors[name])
        identity = errors["as they are"]
        if errors[best] < min(_READABLE, _BETTER * identity):
            raise SelfTestFailed(
                f"self-test: the decoder gives pictures that are {best}. So changed, the encoder "
                f"leads them back to their latents with an error of {errors[best]:.2g}; as they "
                f"are, of {identity:.2g}. "
                f"{_REMEDY}"
            )


def _in_order(values: Tensor, scored: Tensor) -> Tensor:
    """Samples that have a score: the best, the worst, then the others as they are drawn."""
    best_first = scored[values[scored].argsort(descending=True)]
    middle = best_first[1:-1]
    return torch.cat([best_first[:1], best_first[1:][-1:], middle[_drawn(len(middle))]])


def _drawn(count: int) -> Tensor:
    """An order, always the same."""
    generator = torch.Generator().manual_seed(derive_seed("self-test", count))
    return torch.randperm(count, generator=generator)


def _allowed(first: Tensor, recorded: Tensor, values: Tensor) -> float:
    """Largest change of a score.

    Args:
        first: Scores that were given again.
        recorded: Those of the same samples that were trained with.
        values: All that were.
    """
    size = float(values.abs().max())
    allowed = max(_SAME * float(values.max() - values.min()), _SAME_SCORE * size)
    if len(first) < len(values):
        return allowed
    as_sets = _differ(first.sort().values, recorded.sort().values)
    return min(allowed, max(_NEARER_SCORES * as_sets, _ROUNDING * size))


def _differ(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
