"""Does a score belong to the sample that it is used for? Latents, pictures, scores, once in a run.

1. The best and the worst sample of a group are decoded once more, each alone: each must give the
   picture that was scored, and not that of another sample.
2. Their pictures are scored once more, each alone: each must get the score that its advantage came
   from. A reward that answers differently each time is only warned of.
3. If the policy can encode pictures, the latents must come back from the pictures as they are, and
   not from them inverted, mirrored, upside down or with red and blue exchanged.

A decoder that is wrong in another way, or whose encoder is wrong in the same way, is not noticed,
nor is a reward that always judges something else than it should.

Legend: G samples in a group, H W picture size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...algorithms.algorithm import SampledGroup
from ...method.policy import PictureEncoder, Policy
from ...method.reward import Reward, RewardBatch, score_or_mask
from ...method.rollout import Trajectory
from .verdict import SelfTestFailed

__all__ = ["RewardChain"]

log = logging.getLogger(__name__)

_SAME = 0.1
"""Largest change of a picture or of a score, relative to the differences inside the group."""
_SAME_PICTURE, _SAME_SCORE = 2.0 / 255.0, 1e-3
"""The same in units of pictures (0 to 1) and relative to scores, if the group hardly differs."""
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
        """Remember the first group that was scored; images (G, H, W, 3)."""
        if self._images is None:
            self._group, self._images = group, images

    def check(self, groups: Sequence[SampledGroup], rewards: Sequence[RewardBatch]) -> None:
        """Check the group that was kept, and forget it.

        Args:
            groups: Of this process, with the kept one among them.
            rewards: Of every group of the iteration: what advantages are made of.

        Raises:
            SelfTestFailed: A picture, a score or the decoder is not the right one.
        """
        group, images = self._group, self._images
        self._group = self._images = None
        request = next((g.request for g in groups if g.trajectory is group), None)
        if group is None or images is None or request is None:
            return
        values, valid = (
            of_all[request.samples]
            for of_all in (rewards[request.number].values, rewards[request.number].valid)
        )
        known = valid.nonzero().flatten()
        if not len(known):
            return
        order = known[values[known].argsort()]
        samples = order[[-1, 0]] if len(order) > 1 else order
        self._check_pictures(group, images, samples)
        self._check_scores(group, images, values[samples], samples)
        self._check_decoder(group, images, samples)

    def _check_pictures(self, group: Trajectory, images: Tensor, samples: Tensor) -> None:
        for sample in samples.tolist():
            picture = self.policy.decode(group.x_0[sample : sample + 1])
            distances = (images - picture).square().flatten(1).mean(1).sqrt()
            own, nearest = float(distances[sample]), int(distances.argmin())
            if own > max(_SAME * float(distances.max()), _SAME_PICTURE):
                other = "" if nearest == sample else f", it is that of sample {nearest + 1}"
                raise SelfTestFailed(
                    f"self-test: the picture of sample {sample + 1} that was scored is not the one "
                    f"that its latent gives when it is decoded again{other} (they differ by "
                    f"{own:.2g} on average, where black and white differ by 1). The decoder mixes "
                    f"up the samples of a batch, or draws random numbers. {_REMEDY}"
                )

    def _check_scores(
        self, group: Trajectory, images: Tensor, recorded: Tensor, samples: Tensor
    ) -> None:
        """``recorded`` are the scores of these samples, the best and the worst."""
        spread, size = float(recorded.max() - recorded.min()), float(recorded.abs().max())
        allowed = max(_SAME * spread, _SAME_SCORE * size)

        def asked() -> Tensor | None:
            alone = [
                score_or_mask(self.reward, images[sample : sample + 1], [group.example])
                for sample in samples.tolist()
            ]
            again = RewardBatch.joined(alone)
            return again.values if again.valid.all() else None

        first = asked()
        if first is None or _differ(first, recorded) <= allowed:
            return
        second = asked()
        if second is None:
            return
        worst = int((first - recorded).abs().argmax())
        told = (
            f"sample {int(samples[worst]) + 1} was trained with a score of "
            f"{float(recorded[worst]):.4g}, but {self.reward.name} gives the same picture "
            f"{float(first[worst]):.4g}"
        )
        if _differ(first, second) > allowed:
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


def _differ(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
