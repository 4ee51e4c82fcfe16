"""The rule of a reverse step: three numbers (a, b, std) of (t, s, eta).

    p(x_s | x_t) = N(a x_t + b v_t, std^2 I),    t -> s with s < t,  dt = s - t < 0

Every rule has this form because it moves along x_t, the velocity v_t and fresh noise, and along
nothing else: what it may need of the model follows from v_t = eps - x_0,

    x_0 = x_t - t v_t,    eps = x_t + (1 - t) v_t,    score = -eps / t

(the score is that of x_t = (1 - t) x_0 + t eps with x_0 given). Sampling and the log-density are
written once, below.

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
from typing import Annotated, NamedTuple

from torch import Tensor

from ..settings.declared import OneOf, Range, check_settings
from .schedule import PURE_NOISE

__all__ = [
    "ODE",
    "RULES",
    "Coefficients",
    "Rule",
    "SdeConfig",
    "Transition",
    "gaussian_log_p",
    "sample_step",
]


class Transition(NamedTuple):
    """p(x_s | x_t) = N(mean, std^2 I)."""

    mean: Tensor
    """Float32, shape (B, *latent)."""
    std: float
    """Standard deviation, 0 for a deterministic step."""


class Coefficients(NamedTuple):
    """The three numbers of a step."""

    a: float
    """Factor of x_t in the mean."""
    b: float
    """Factor of v_t in the mean."""
    std: float
    """Standard deviation of the fresh noise, 0 for a deterministic step."""

    def transition(self, x_t: Tensor, v_t: Tensor) -> Transition:
        """Put a state and its velocity in, both of shape (B, *latent)."""
        return Transition(x_t * self.a + v_t * self.b, self.std)


_LONGEST_STEP = 3.0
"""Of Flow-GRPO's noise level, in units of 1 - t. With N steps and any shift the second step is at
most N / (N - 2) long; that bound is 3 for N = 3, and smaller for every other N that has noise in
it."""

Rule = Callable[[float, float, float], Coefficients]
"""(t, s, eta) -> the three numbers, 0 <= s < t <= 1."""


def ode(t: float, s: float, eta: float = 0.0) -> Coefficients:
    """Euler step of the probability-flow ODE dx = v_t dt: mean = x_t + dt v_t."""
    return Coefficients(1.0, s - t, 0.0)


def flow(t: float, s: float, eta: float) -> Coefficients:
    """Euler-Maruyama step of Flow-GRPO's SDE, whose solutions keep the marginals.

    Steps of finite size do not: like Euler's steps along the ODE they lose variance, less with more
    steps and with more noise (docs/notation.md has a table).

        dx = (v_t + sigma_t^2 / (2 t) (x_t + (1 - t) v_t)) dt + sigma_t dw,
        sigma_t = eta sqrt(t / (1 - t))                                          (Eq. 7, GCPO v3)

    At t = 1 the noise level diverges; the next time s takes its place in the denominator, as in
    the official code. However short that step is, it widens the variance by eta^4 / 4, which the
    noise of later steps forgets; a rollout with noise in the first step alone keeps it.

    The same is done from t = 0.98 on, which counts as pure noise, if the step is more than three
    times as long as 1 - t (a first time of 0.9999, which schedulers and rounding make): there the
    formula gives a std of eta sqrt(t (t - s) / (1 - t)), which has no bound. The SDE keeps the
    marginals with any sigma_t. In a :func:`~chunk_grpo_core.method.schedule.shifted_grid` only the
    first step is that long.
    """
    is_at_noise = t >= PURE_NOISE and t - s > _LONGEST_STEP * (1.0 - t)
    return _euler_maruyama(t, s, eta * math.sqrt(t / (1.0 - (s if is_at_noise else t))))


def dance(t: float, s: float, eta: float) -> Coefficients:
    """Euler-Maruyama step of DanceGRPO's SDE: constant noise, drift corrected by the score.

        dx = (v_t - eta^2 / 2 score) dt + eta dw,    score = -(x_t - (1 - t) x_0) / t^2

    With x_0 = x_t - t v_t this score is -(x_t + (1 - t) v_t) / t, so the SDE is Flow-GRPO's with
    sigma_t = eta at every time.
    """
    return _euler_maruyama(t, s, eta)


def cps(t: float, s: float, eta: float) -> Coefficients:
    """Coefficients-preserving step: part of the predicted noise is drawn afresh.

        mean = (1 - s) x_0 + sqrt(s^2 - std^2) eps,   std = s sin(eta pi / 2)

    With x_0 = x_t - t v_t and eps = x_t + (1 - t) v_t, and k = sqrt(s^2 - std^2):

        a = (1 - s) + k,    b = k (1 - t) - (1 - s) t

    The share of fresh noise does not shrink with the step size, so this rule has no SDE as its
    limit; eta must be in [0, 1].

    The code of Flow-GRPO and Flow-Factory takes -(x_s - mean)^2 as the log-density of this rule,
    without 1 / (2 std^2); :func:`gaussian_log_p` has it, as for every other rule. A log-ratio there
    is 2 std^2 times the one here. So a clip range c of theirs is c / (2 std^2) here, another one at
    each step, and late steps, whose std is small, weigh more here than there.
    """
    std = s * math.sin(eta * math.pi / 2.0)
    kept = math.sqrt(s**2 - std**2)
    return Coefficients((1.0 - s) + kept, kept * (1.0 - t) - (1.0 - s) * t, std)


def _euler_maruyama(t: float, s: float, sigma_t: float) -> Coefficients:
    """Discretise dx = (v_t + h (x_t + (1 - t) v_t)) dt + sigma_t dw with h = sigma_t^2 / (2 t).

    Collecting x_t and v_t in x_t + drift dt:

        a = 1 + h dt,    b = (1 + h (1 - t)) dt,    std = sigma_t sqrt(-dt)
    """
    dt = s - t
    half = sigma_t**2 / (2.0 * t)
    return Coefficients(1.0 + half * dt, (1.0 + half * (1.0 - t)) * dt, sigma_t * math.sqrt(-dt))


#: Name -> rule. A new one is a function of three numbers, and a line here.
RULES: dict[str, Rule] = {"flow": flow, "dance": dance, "cps": cps, "ode": ode}


@dataclass(frozen=True, kw_only=True, slots=True)
class SdeConfig:
    """Which rule, how much noise."""

    rule: Annotated[str, OneOf(RULES)] = "flow"
    """flow, dance, cps (stochastic) or ode (deterministic: for pictures, not for training)."""
    eta: Annotated[float, Range(0, 2)] = 0.7
    """Noise scale; 0.7 in the paper (Table 8)."""

    def __post_init__(self) -> None:
        check_settings(self, "sde")
        if self.rule == "cps" and self.eta > 1:
            raise ValueError(f"sde.eta is {self.eta}; with the rule cps it must be in [0, 1]")

    @property
    def is_stochastic(self) -> bool:
        """Whether steps carry noise, without which there is no log-density to train on."""
        return self.rule != "ode" and self.eta > 0

    def coefficients(self, t: float, s: float) -> Coefficients:
        """The three numbers of the step t -> s; the step into s = 0 is always the ODE's."""
        return (RULES[self.rule] if s > 0.0 else ode)(t, s, self.eta)

    def transition(self, x_t: Tensor, v_t: Tensor, t: float, s: float) -> Transition:
        """Apply the rule in float32."""
        return self.coefficients(t, s).transition(x_t.float(), v_t.float())

    def std(self, t: float, s: float) -> float:
        """Standard deviation of the step t -> s, which depends on no picture."""
        return self.coefficients(t, s).std

    def noise_level(self, t: float, s: float) -> float:
        """What Flow-GRPO's code calls ``std_dev_t``: the sigma_t of an SDE, whose step has the
        standard deviation sigma_t sqrt(t - s); of ``cps``, which has no SDE, the deviation itself.
        """
        std = self.std(t, s)
        return std if self.rule == "cps" else std / math.sqrt(t - s)


ODE = SdeConfig(rule="ode")
"""Steps without noise."""


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
