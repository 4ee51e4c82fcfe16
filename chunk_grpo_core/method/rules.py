"""One reverse step: a rule gives mean and standard deviation, everything else is shared.

The reverse-time SDE of Flow-GRPO keeps the marginals of the flow ODE for every noise level:

    dx = (v_t + sigma_t^2 / (2 t) (x_t + (1 - t) v_t)) dt + sigma_t dw,
    sigma_t = eta sqrt(t / (1 - t))                                              (Eq. 7, GCPO v3)

discretised by Euler-Maruyama for t -> s, dt = s - t < 0:

    mean = x_t (1 + sigma_t^2 / (2 t) dt) + v_t (1 + sigma_t^2 (1 - t) / (2 t)) dt
    std  = sigma_t sqrt(-dt)

A rule is only the pair (mean, std). Sampling and the log-density are written once, below.

References:
    Flow-GRPO: Training Flow Matching Models via Online RL (Liu et al., 2025), arXiv 2505.05470v5.
    GCPO / Chunk-GRPO (Luo et al., 2026), arXiv 2510.21583v3, Eq. (7).
    DanceGRPO: Unleashing GRPO on Visual Generation (Xue et al., 2025), arXiv 2505.07818.
    Coefficients-Preserving Sampling for RL with Flow Matching (2025), arXiv 2509.05952.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "KEEPS_MARGINALS",
    "RULES",
    "SdeConfig",
    "Transition",
    "gaussian_log_p",
    "ode_step",
    "sample_step",
]


class Transition(NamedTuple):
    """p(x_s | x_t) = N(mean, std^2 I)."""

    mean: Tensor
    """Float32, shape (B, *latent)."""
    std: float
    """Standard deviation, 0 for a deterministic step."""


def ode_step(x_t: Tensor, v_t: Tensor, t: float, s: float, eta: float = 0.0) -> Transition:
    """Take an Euler step of the probability-flow ODE: x_s = x_t + (s - t) v_t."""
    return Transition(x_t + (s - t) * v_t, 0.0)


def flow_step(x_t: Tensor, v_t: Tensor, t: float, s: float, eta: float) -> Transition:
    """Take a step of the Flow-GRPO SDE (module docstring).

    At t = 1 the noise level diverges; the next time s takes its place in the denominator, as in
    the official code. However short that step is, it widens the variance by eta^4 / 4, which the
    noise of later steps forgets; a rollout with noise in the first step alone keeps it.
    """
    dt = s - t
    sigma_t = eta * math.sqrt(t / (1.0 - (t if t < 1.0 else s)))
    half = sigma_t**2 / (2.0 * t)
    mean = x_t * (1.0 + half * dt) + v_t * ((1.0 + half * (1.0 - t)) * dt)
    return Transition(mean, sigma_t * math.sqrt(-dt))


def dance_step(x_t: Tensor, v_t: Tensor, t: float, s: float, eta: float) -> Transition:
    """Take a step of the DanceGRPO SDE: constant noise, drift corrected by the score.

    With the score -(x_t - (1 - t) x_0) / t^2 of the predicted x_0 = x_t - t v_t:

        mean = x_t + (s - t) (v_t - eta^2 / 2 * score),   std = eta sqrt(t - s)
    """
    dt = s - t
    x_0 = x_t - t * v_t
    score = -(x_t - (1.0 - t) * x_0) / t**2
    mean = x_t + dt * (v_t - 0.5 * eta**2 * score)
    return Transition(mean, eta * math.sqrt(-dt))


def cps_step(x_t: Tensor, v_t: Tensor, t: float, s: float, eta: float) -> Transition:
    """Take a coefficients-preserving step: part of the predicted noise is drawn afresh.

        mean = (1 - s) x_0 + sqrt(s^2 - std^2) eps,   std = s sin(eta pi / 2)

    with x_0 = x_t - t v_t and eps = x_t + (1 - t) v_t. The share of fresh noise does not shrink
    with the step size, so this rule has no SDE as its limit; eta must be in [0, 1].
    """
    std = s * math.sin(eta * math.pi / 2.0)
    x_0, noise = x_t - t * v_t, x_t + (1.0 - t) * v_t
    return Transition((1.0 - s) * x_0 + math.sqrt(s**2 - std**2) * noise, std)


#: Name -> rule(x_t, v_t, t, s, eta). A new rule is one function of this form.
RULES: dict[str, Callable[[Tensor, Tensor, float, float, float], Transition]] = {
    "flow": flow_step,
    "dance": dance_step,
    "cps": cps_step,
    "ode": ode_step,
}

#: Rules whose samples keep the flow's distribution at every noise level as steps get finer. ``cps``
#: is not one: with the exact velocity of a Gaussian its samples are too narrow.
KEEPS_MARGINALS = frozenset({"flow", "dance", "ode"})


@dataclass(frozen=True, kw_only=True, slots=True)
class SdeConfig:
    """Which rule, how much noise."""

    rule: str = "flow"
    """flow, dance, cps (stochastic) or ode (deterministic: for pictures, not for training)."""
    eta: float = 0.7
    """Noise scale, 0 or more; 0.7 in the paper (Table 8)."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"sde.rule is {self.rule!r}; it must be one of {', '.join(RULES)}")
        if not self.eta >= 0:
            raise ValueError(f"sde.eta is {self.eta}; it must be 0 or more")
        if self.rule == "cps" and self.eta > 1:
            raise ValueError(f"sde.eta is {self.eta}; with the rule cps it must be in [0, 1]")

    @property
    def is_stochastic(self) -> bool:
        """Whether steps carry noise, without which there is no log-density to train on."""
        return self.rule != "ode" and self.eta > 0

    def transition(self, x_t: Tensor, v_t: Tensor, t: float, s: float) -> Transition:
        """Apply the rule in float32; the step into s = 0 is always the ODE's."""
        rule = RULES[self.rule] if s > 0.0 else ode_step
        return rule(x_t.float(), v_t.float(), t, s, self.eta)

    def std(self, t: float, s: float) -> float:
        """Standard deviation of the step t -> s, which depends on no picture."""
        nothing = torch.zeros(1)
        return self.transition(nothing, nothing, t, s).std


def sample_step(transition: Transition, noise: Tensor) -> Tensor:
    """Draw x_s = mean + std * noise; ``noise`` is N(0, 1) of shape (B, *latent)."""
    return transition.mean + transition.std * noise if transition.std > 0 else transition.mean


def gaussian_log_p(x_s: Tensor, transition: Transition) -> Tensor:
    """Log-density of x_s, **averaged** over the latent dimensions, float32, shape (B,).

    The mean (not the sum) makes chunk ratios geometric means over steps and dimensions, which is
    the scale that the paper's clip range of 5e-5 belongs to.

    Raises:
        ValueError: The step is deterministic and has no density.
    """
    if not transition.std > 0:
        raise ValueError("a deterministic step has no log-density; train with eta above 0")
    z = (x_s.float() - transition.mean) / transition.std
    log_p = -0.5 * z.square() - math.log(transition.std) - 0.5 * math.log(2.0 * math.pi)
    return log_p.flatten(1).mean(1)
