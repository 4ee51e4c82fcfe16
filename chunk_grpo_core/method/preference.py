"""Offline preferences: raise what a person preferred over what they did not, without rollouts.

A judged picture x_0 is noised to x_t, and L = |v - (eps - x_0)|^2 (mean over latent dimensions,
``method/matching_times.py``) is measured with the adapter and, as L_ref, without it, at the same t
and eps. What the adapter makes of a picture is its *implicit reward*,

    r = beta / 2  w(t) (L_ref - L),

an estimate of beta log(p / p_ref) up to a factor. The losses are means over

    dpo    pairs and times       -log sigma(r_better - r_worse)
    kto    pictures and times    1 - sigma(+-(r - z)),   z = max(0, mean of r over the group)

with + for a liked picture, - for another one, and no gradient through the reference point z. At the
reference r = 0: the first dpo loss is log 2, the first kto loss 1/2.

A pair shares t and eps, so that what its pictures have in common cancels; Diffusion-DPO's code does
the same. Where the noise that a picture began with is known, eps is that noise (PNAPO): a rectified
flow leads from this very noise to the picture, almost straight.

Everything here is a function of small tensors; ``method/preference_stream.py`` brings the network
in.

Legend: G pictures in a group, K times, B picture-times.

References:
    Diffusion-DPO (Wallace et al., 2023), arXiv 2311.12908, Eq. 14 and its code: the 1/2, the mean
    over dimensions, beta 5000 there; a pair shares t and eps.
    Flow-DPO of VideoAlign (Liu et al., 2025), arXiv 2501.13918: the same for velocities of
    rectified flows; the same beta at every t (our weight ``equal``) does better than one that
    depends on it. Flow-GRPO's code of it for SD3.5 has beta 100.
    Diffusion-KTO (Li et al., 2024), arXiv 2404.04465, Eq. 8 and its code: the sigmoid as utility,
    z from the batch, not below 0. There is no 1/2 there: its beta is half of ours.
    PNAPO (Lu et al., 2026), arXiv 2605.09433: the noise that a picture began with. Its changing
    beta is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..settings.declared import OneOf, Range, check_settings
from .matching_times import MatchingTimes, time_weights

__all__ = [
    "NOISES",
    "OBJECTIVES",
    "PreferenceConfig",
    "implicit_rewards",
    "preference_losses",
    "reference_point",
]

OBJECTIVES = ("dpo", "kto")
NOISES = ("stored", "fresh")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig(MatchingTimes):
    """What the algorithm ``preference`` trains; the others do not use it."""

    picks: str = ""
    """Folder of a taste, whose picks are trained on: output/chunk_grpo/taste/mine. Its prompts are
    those to train on."""
    weight: Annotated[str, OneOf(("equal", "x0"))] = "equal"
    """w(t). equal: 1, the error of the velocity, as in Flow-DPO. x0: t^2, that of the picture it
    points to."""
    objective: Annotated[str, OneOf(OBJECTIVES)] = "dpo"
    """dpo: of two pictures of a prompt, the preferred one shall become likelier, compared with the
    other one and with the model without its LoRA (Flow-DPO, arXiv 2501.13918). kto: liked pictures
    shall become likelier and others less likely, each by itself (Diffusion-KTO, arXiv 2404.04465);
    this one also takes likes."""
    beta: Annotated[float, Range(1e-3, 1e6)] = 200.0
    """How soon a preference counts as learnt. Large: soon, and the model stays near to what it was.
    Small: it may move far. Factor of a difference of matching errors (means over dimensions) over
    2, as in Diffusion-DPO's code, which has 5000; Flow-GRPO's has 100. On the tiny FLUX (160 picks
    seen three times, one run each) 200 gained three times as much as 2000; see docs/taste.md."""
    noise: Annotated[str, OneOf(NOISES)] = "fresh"
    """fresh: noise every picture anew. stored: with the noise that it began with, where the pick
    knows that (PNAPO, arXiv 2605.09433), and with fresh noise elsewhere. On the tiny FLUX stored
    noise gained a little less (15 pairs of runs); see docs/recipes.md."""

    def __post_init__(self) -> None:
        check_settings(self, "preference")

    def owners(self, samples: Sequence[int]) -> Sequence[int]:
        """See :class:`~.matching_times.MatchingTimes`: the two pictures of a pair share."""
        return [sample // 2 for sample in samples] if self.objective == "dpo" else samples


def implicit_rewards(
    error: Tensor, reference: Tensor, t: Tensor, config: PreferenceConfig
) -> Tensor:
    """r of each picture-time, shape (B,).

    Args:
        error: L with the adapter, shape (B,).
        reference: L without it, shape (B,).
        t: Levels, shape (B,).
        config: beta and w(t).
    """
    return 0.5 * config.beta * time_weights(config, t, reference) * (reference - error)


def reference_point(rewards: Tensor) -> Tensor:
    """z of ``kto``, without gradients: one number for all picture-times of a group."""
    return rewards.detach().mean().clamp_min(0.0)


def preference_losses(rewards: Tensor, is_better: Tensor, objective: str) -> Tensor:
    """The losses of which the mean is the loss of a group.

    Args:
        rewards: r of each picture-time, shape (B,). For ``dpo`` a pair is two neighbours, the
            preferred one first; for ``kto`` they are all of the group.
        is_better: Whether each was preferred or liked, bool, shape (B,).
        objective: dpo or kto.

    Returns:
        Shape (B / 2,) for ``dpo``, (B,) for ``kto``.
    """
    if objective == "dpo":
        better, worse = rewards.view(-1, 2).unbind(1)
        return -logsigmoid(better - worse)
    sign = torch.where(is_better, 1.0, -1.0).to(rewards)
    return 1.0 - torch.sigmoid(sign * (rewards - reference_point(rewards)))
