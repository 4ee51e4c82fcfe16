"""The forward form: pull the velocity at noised pictures, in proportion to their advantages.

A finished picture x_0 of any sampler is noised to x_t = (1 - t) x_0 + t eps with fresh noise, and
the velocity v there is compared with the one that leads back to this picture, eps - x_0
(``method/matching_times.py``). With

    L = |v - (eps - x_0)|^2    matching error       P = |v - v_old|^2    move since the rollout
    R = |v - v_ref|^2          gap to the reference
    N = max(0, |v| / |v_ref| - 1)^2                 excess of the norm

(means over latent dimensions), the loss of a group is the mean over samples and times of

    awm    w(t) A L                                 advantage-weighted matching
    nft    w(t) (A (L - P) + beta P)                DiffusionNFT
    elbo   w(t) [r A] L                             a PPO ratio of likelihood estimates
    all    + kl_ref R + norm_guard N

*nft*: L - P is, up to a constant, the tangent of L at v_old. DiffusionNFT's own loss,
c |v+ - y|^2 + (1 - c) |v- - y|^2 with v+- = v_old +- b (v - v_old), y = eps - x_0 and
c = 1/2 + A / (2 A_max), is (b / A_max) times this one plus a constant, with beta = b A_max.
*elbo*: log r = mean over the times of w(t) (L_old - L), the difference of two estimates of log p on
common (t, eps); [r A] is r A where PPO's clip lets a gradient through, and 0 where not.
At v = v_old the three have the same gradient, w(t) A dL.

Everything here is a function of small tensors; ``method/matching_stream.py`` brings the network in.

Legend: G samples in a group, K times of a sample, B sample-times in a micro-batch, ``*latent`` the
model's latent shape.

References:
    Advantage Weighted Matching (Xue et al., 2025), arXiv 2509.25050: awm.
    DiffusionNFT (Zheng et al., 2025), arXiv 2509.16117: nft.
    Flow Policy Optimization (McAllister et al., 2025), arXiv 2507.21053: elbo; arXiv 2602.04663
    (2026) compares such estimates for images.
    Sol-RL (2026), arXiv 2604.06916: rank a large pool cheaply, draw the best and the worst again.
    NormGuard (Pan et al., 2026), arXiv 2606.27771: the penalty on the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ..settings.declared import OneOf, Range, check_settings
from .matching_times import MatchingTimes, matching_error, mean_square, time_weights

__all__ = [
    "OBJECTIVES",
    "OLD_POLICIES",
    "ForwardConfig",
    "MatchingTerms",
    "clipped_advantages",
    "matching_loss",
    "matching_terms",
]

OBJECTIVES = ("awm", "nft", "elbo")
OLD_POLICIES = ("rollout", "average")


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardConfig(MatchingTimes):
    """What the algorithm ``forward`` trains; Chunk-GRPO does not use it."""

    rank_steps: Annotated[int, Range(0, 1000)] = 0
    """Steps of the pictures that are scored, 2 or more; 0 for all steps of the grid. With fewer a
    large group is sampled cheaply, and what ``advantage.keep`` leaves of it is drawn again from the
    same noise with all steps, and trained on (Sol-RL, arXiv 2604.06916)."""
    objective: Annotated[str, OneOf(OBJECTIVES)] = "awm"
    """awm: advantage-weighted matching. nft: DiffusionNFT, the same along its tangent at the policy
    that sampled, with a pull back to that policy. elbo: a clipped ratio of likelihood estimates. On
    the first update of a rollout the three are one."""
    share_times: bool = False
    """All samples of a group get the same levels and the same noise, so that what they have in
    common cancels."""
    kl_ref: Annotated[float, Range(0, 1e6)] = 0.3
    """Leash: coefficient of |v - v_ref|^2, the distance to the model without its LoRA, for one more
    call of the model. Without one, pictures spoil before the reward shows it."""
    norm_guard: Annotated[float, Range(0, 1e6)] = 0.0
    """Coefficient of max(0, |v| / |v_ref| - 1)^2, which holds the length of the velocity down to
    the reference's (NormGuard)."""
    beta: Annotated[float, Range(0, 1e4)] = 1.0
    """For ``nft``: coefficient of |v - v_old|^2, the pull back to the policy that sampled.
    DiffusionNFT's beta times its largest advantage (there 5)."""
    clip: Annotated[float, Range(1e-7, 10)] = 1e-3
    """For ``elbo``: the ratio may move from 1 by this much."""
    old: Annotated[str, OneOf(OLD_POLICIES)] = "rollout"
    """For ``nft`` and ``elbo``: the policy that samples and is compared with. rollout: the newest
    weights. average: a slow average of them (DiffusionNFT)."""
    old_decay: Annotated[float, Range(0, 0.9999)] = 0.5
    """For ``old = average``: part of the average that each iteration keeps."""

    def __post_init__(self) -> None:
        check_settings(self, "forward")

    def owners(self, samples: Sequence[int]) -> Sequence[int]:
        """See :class:`~.matching_times.MatchingTimes`."""
        return [0] * len(samples) if self.share_times else samples

    @property
    def needs_old(self) -> bool:
        """Whether later updates of a rollout compare with the policy that sampled."""
        return self.objective != "awm"

    @property
    def needs_reference(self) -> bool:
        """Whether the adapter-off policy is used."""
        return self.kl_ref > 0 or self.norm_guard > 0


class MatchingTerms(NamedTuple):
    """All that the loss takes from the network: one number for each sample-time, shape (B,)."""

    error: Tensor
    """L."""
    move: Tensor
    """P."""
    gap: Tensor
    """R; 0 where nobody asked for it."""
    norm: Tensor
    """|v| / |v_ref|; 1 where nobody asked for it."""


def matching_terms(
    v_t: Tensor,
    target: Tensor,
    old: Tensor | None,
    reference: Tensor | None,
    config: ForwardConfig,
) -> MatchingTerms:
    """Measure velocities; terms that the loss does not use carry no gradient.

    Args:
        v_t: Of the present policy, float32, shape (B, *latent).
        target: eps - x_0.
        old: Velocities of the policy that sampled; v_t itself if None.
        reference: Those without the adapter, if they are asked for.
        config: Says what the loss uses.
    """
    fixed = v_t.detach()
    moving = v_t if config.objective == "nft" else fixed
    gap, norm = v_t.new_zeros(len(v_t)), v_t.new_ones(len(v_t))
    if reference is not None:
        gap = mean_square((v_t if config.kl_ref else fixed) - reference)
        size = mean_square(v_t if config.norm_guard else fixed)
        norm = (size / mean_square(reference).clamp_min(1e-12)).sqrt()
    return MatchingTerms(
        error=matching_error(v_t, target),
        move=mean_square(moving - (fixed if old is None else old)),
        gap=gap,
        norm=norm,
    )


def matching_loss(
    terms: MatchingTerms, t: Tensor, advantages: Tensor, config: ForwardConfig
) -> Tensor:
    """Loss of each sample-time, shape (B,), before the mean over samples and times.

    Args:
        terms: Of the network.
        t: Levels, shape (B,).
        advantages: A of each row; for ``elbo`` those of :func:`clipped_advantages`.
        config: The objective, its weight and its penalties.
    """
    pull = advantages * terms.error
    if config.objective == "nft":
        pull = advantages * (terms.error - terms.move) + config.beta * terms.move
    loss = time_weights(config, t, terms.error) * pull
    if config.kl_ref:
        loss = loss + config.kl_ref * terms.gap
    if config.norm_guard:
        loss = loss + config.norm_guard * (terms.norm - 1.0).clamp_min(0.0).square()
    return loss


def clipped_advantages(advantages: Tensor, log_ratio: Tensor, clip: float) -> Tensor:
    """[r A] of each sample: what PPO's clipped surrogate leaves of its gradient.

    The gradient of min(r A, clip(r) A) is r A dlog r, and 0 where r has moved out of the clip range
    in the direction that A asks for.

    Args:
        advantages: A, shape (G,).
        log_ratio: log r, shape (G,).
        clip: r may move from 1 by this much.
    """
    ratio = log_ratio.exp()
    held = ((advantages > 0) & (ratio > 1.0 + clip)) | ((advantages < 0) & (ratio < 1.0 - clip))
    return torch.where(held, 0.0, ratio * advantages)
