"""Optimise by chunk: the clipped surrogate on chunk ratios, its guards and its penalties.

    r_j  = exp( mean over t in ch_j of (log p_new(x_s | x_t) - log p_old(x_s | x_t)) )   (Eq. 15)
    loss = - mean over samples and their drawn chunks of
             min( r_j A, clip(r_j, 1 - eps_low, 1 + eps_high) A )                        (Eq. 14)
           + the mean of what penalties add, over the same steps

The geometric mean inside a chunk is GSPO's; with one step per chunk r_j is the step ratio of
Flow-GRPO, with one chunk in all it is the sequence ratio. Equation numbers: GCPO v3.

Everything here is a pure function of small matrices; ``method/streaming.py`` brings the network in.

Legend: G samples in a group, K chunks, N steps, U ratios of a sample: K, or N - 1 step ratios.

References:
    GSPO: Group Sequence Policy Optimization (Zheng et al., 2025), arXiv 2507.18071.
    GRPO-Guard (Wang et al., 2025), arXiv 2510.22319: ratio normalisation, step weights.
    TempFlow-GRPO (He et al., 2025), arXiv 2508.04324: step weights.
    Flow-DPPO (2026), arXiv 2606.11025: the exact KL as trust region.
    Flow-GRPO (Liu et al., 2025), arXiv 2505.05470; github.com/yifan123/flow_grpo: its KL term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ..settings.declared import OneOf, Range, check_settings
from .chunks import ChunkPlan

__all__ = [
    "KL_TYPES",
    "RATIOS",
    "STEP_WEIGHTS",
    "TRUST_REGIONS",
    "GroupFacts",
    "ObjectiveConfig",
    "StepTerms",
    "chunk_means",
    "group_loss",
    "is_held_back",
    "log_ratios",
    "plain_log_ratios",
    "reference_distance",
    "step_weights",
]

RATIOS = ("chunk", "step")
TRUST_REGIONS = ("clip", "kl-mask")
STEP_WEIGHTS = ("equal", "guard", "tempflow")
KL_TYPES = ("velocity", "flow-grpo", "exact")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Ratio, trust region, weights and penalties."""

    clip_low: Annotated[float, Range(1e-7, 0.99)] = 5e-5
    """eps_low: the ratio may fall to 1 - eps_low. Paper, Table 8."""
    clip_high: Annotated[float, Range(1e-7, 10)] = 5e-5
    """eps_high: the ratio may rise to 1 + eps_high. Paper, Table 8."""
    ratio: Annotated[str, OneOf(RATIOS)] = "chunk"
    """chunk: one ratio r_j for each chunk (the paper). step: every step keeps a ratio and a clip of
    its own, and a chunk's gain is the mean over its steps. On-policy both have the same gradient,
    so ``step`` isolates what the shared ratio does from what the weighting of steps does."""
    trust_region: Annotated[str, OneOf(TRUST_REGIONS)] = "clip"
    """clip: PPO's, on the ratio. kl-mask: no clip, but a ratio that moves on from 1 in the
    direction its advantage asks for is held back once KL(old || new) exceeds ``kl_threshold``."""
    kl_threshold: Annotated[float, Range(1e-12, 100)] = 1e-5
    """For ``kl-mask``: KL per latent dimension, mean over the steps of a ratio. Flow-DPPO:
    1e-5 for single steps."""
    ratio_norm: bool = False
    """Re-centre and re-scale log-ratios (GRPO-Guard): std_t (log r_t + KL_t), whose mean is 0 and
    whose spread does not grow as the step's noise falls. That ratio is narrower: GRPO-Guard clips
    it at 2e-6 to 4e-6."""
    step_weights: Annotated[str, OneOf(STEP_WEIGHTS)] = "equal"
    """Weight of a step's gain: equal; guard: 1 / |dt| (GRPO-Guard); tempflow: the std of its noise
    (TempFlow-GRPO, Eq. 7). All are scaled to mean 1 (GRPO-Guard's own are not), so that the
    gradient-norm clip keeps its meaning. A chunk has the mean weight of its steps."""
    kl_old: Annotated[float, Range(0, 1e6)] = 0.0
    """Coefficient of the exact KL(old || new) per latent dimension, old being the policy that
    sampled, mean over the steps of a ratio. The official code's ``kl_coeff``, 0 in every script,
    weighs the k3 of the ratio instead, which is about the square of that KL (``docs/units.md``)."""
    kl_ref: Annotated[float, Range(0, 1e6)] = 0.0
    """Coefficient of the distance to the reference (adapter off) that ``kl_type`` names."""
    kl_type: Annotated[str, OneOf(KL_TYPES)] = "velocity"
    """Distance to the reference, mean over the steps of a ratio; each is a mean over latent
    dimensions. velocity: |v - v_ref|^2 (Flow-Factory: v-based). exact: KL(new || reference) =
    |mean - mean_ref|^2 / (2 std^2). flow-grpo: the same with the noise level sigma_t of the SDE in
    place of std = sigma_t sqrt(-dt), as Flow-GRPO's code has it: the KL times -dt."""

    def __post_init__(self) -> None:
        check_settings(self, "objective")

    @property
    def needs_old_mean(self) -> bool:
        """Whether the exact KL to the sampling policy is used."""
        return self.ratio_norm or self.trust_region == "kl-mask" or self.kl_old > 0

    @property
    def needs_reference(self) -> bool:
        """Whether the adapter-off policy is used."""
        return self.kl_ref > 0

    @property
    def has_penalty(self) -> bool:
        """Whether samples without advantage have a gradient, too."""
        return self.needs_reference or self.kl_old > 0


class StepTerms(NamedTuple):
    """All that the loss takes from the network: one number for each sample and step, (G, N - 1).

    Entries of chunks that are not drawn may hold anything finite.
    """

    log_p: Tensor
    """New log-density of the recorded step, mean over latent dimensions."""
    kl_old: Tensor
    """Exact KL(old || new) = mean over dimensions of (mean_new - mean_old)^2 / (2 std^2)."""
    gap: Tensor
    """Mean over dimensions of (v - v_ref)^2."""


@dataclass(frozen=True)
class GroupFacts:
    """What is known about one group before the network is asked."""

    plan: ChunkPlan
    """K chunks covering N - 1 steps."""
    advantages: Tensor
    """A_i, shape (G,)."""
    drawn: Tensor
    """Bool, shape (G, K): the chunks that are trained, at least one in each row."""
    old_log_p: Tensor
    """Log-densities at sampling time, shape (G, N - 1)."""
    std: Tensor
    """Standard deviation of each stochastic step, shape (N - 1,)."""
    dt: Tensor
    """s - t of each stochastic step, below 0, shape (N - 1,)."""
    v_factor: Tensor
    """Factor b of the velocity in the mean of each stochastic step, shape (N - 1,)."""
    noise_level: Tensor
    """sigma_t of each stochastic step, shape (N - 1,): ``SdeConfig.noise_level``."""


def chunk_means(values: Tensor, plan: ChunkPlan) -> Tensor:
    """Average numbers of steps, shape (G, N - 1), inside each chunk: (G, K)."""
    return torch.stack([values[:, a:b].mean(1) for a, b in plan.bounds()], dim=1)


def step_weights(facts: GroupFacts, config: ObjectiveConfig) -> Tensor:
    """Weight of each step's gain, shape (N - 1,), with mean 1."""
    weights = {
        "equal": torch.ones_like(facts.dt),
        "guard": 1.0 / facts.dt.abs(),
        "tempflow": facts.std,
    }[config.step_weights]
    return weights / weights.mean()


def _per_ratio(values: Tensor, facts: GroupFacts, config: ObjectiveConfig) -> Tensor:
    """Numbers of steps (G, N - 1) -> numbers of ratios (G, U)."""
    return chunk_means(values, facts.plan) if config.ratio == "chunk" else values


def _per_chunk(values: Tensor, facts: GroupFacts, config: ObjectiveConfig) -> Tensor:
    """Numbers of ratios (G, U) -> numbers of chunks (G, K)."""
    return values if config.ratio == "chunk" else chunk_means(values, facts.plan)


def log_ratios(terms: StepTerms, facts: GroupFacts, config: ObjectiveConfig) -> Tensor:
    """Log-ratios log r_j, shape (G, K), or log r_t, shape (G, N - 1), for step ratios."""
    if not config.ratio_norm:
        return plain_log_ratios(terms, facts, config)
    difference = terms.log_p - facts.old_log_p
    return _per_ratio((difference + terms.kl_old) * facts.std, facts, config)


def plain_log_ratios(terms: StepTerms, facts: GroupFacts, config: ObjectiveConfig) -> Tensor:
    """:func:`log_ratios` before ``ratio_norm``."""
    return _per_ratio(terms.log_p - facts.old_log_p, facts, config)


def is_held_back(terms: StepTerms, facts: GroupFacts, config: ObjectiveConfig) -> Tensor:
    """Ratios whose gradient the trust region removes, bool, shape (G, U)."""
    ratio, a = log_ratios(terms, facts, config).exp(), facts.advantages[:, None]
    if config.trust_region == "clip":
        up, down = ratio > 1.0 + config.clip_high, ratio < 1.0 - config.clip_low
        return ((a > 0) & up) | ((a < 0) & down)
    is_far = _per_ratio(terms.kl_old, facts, config) > config.kl_threshold
    return is_far & (((a > 0) & (ratio > 1.0)) | ((a < 0) & (ratio < 1.0)))


def reference_distance(terms: StepTerms, facts: GroupFacts, config: ObjectiveConfig) -> Tensor:
    """Distance of each step to the reference, shape (G, N - 1); see ``kl_type``.

    Two policies differ in the mean of a step, a x_t + b v_t, only by b (v - v_ref), so that every
    kind is the gap of the velocities times a number of the step.
    """
    if config.kl_type == "velocity":
        return terms.gap
    noise = facts.noise_level if config.kl_type == "flow-grpo" else facts.std
    return terms.gap * (facts.v_factor.square() / (2.0 * noise.square()))


def group_loss(terms: StepTerms, facts: GroupFacts, config: ObjectiveConfig) -> Tensor:
    """Loss of one group, a scalar that carries gradients to ``terms``."""
    log_ratio, a = log_ratios(terms, facts, config), facts.advantages[:, None]
    ratio = log_ratio.exp()
    if config.trust_region == "clip":
        clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
        gain = torch.minimum(ratio * a, clipped * a)
    else:
        held = is_held_back(terms, facts, config)
        gain = torch.where(held, ratio.detach() * a, ratio * a)
    if config.step_weights != "equal":
        weights = step_weights(facts, config).expand(len(a), -1)
        gain = gain * _per_ratio(weights, facts, config)
    if config.kl_old:
        gain = gain - config.kl_old * _per_ratio(terms.kl_old, facts, config)
    if config.kl_ref:
        distance = reference_distance(terms, facts, config)
        gain = gain - config.kl_ref * _per_ratio(distance, facts, config)
    gain = _per_chunk(gain, facts, config)
    per_sample = torch.where(facts.drawn, gain, 0.0).sum(1) / facts.drawn.sum(1)
    return -per_sample.mean()
