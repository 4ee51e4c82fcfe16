"""The stochastic rules of the core as a SAMPLER for SamplerCustomAdvanced.

Legend: B samples; latents are the model's internal ones, in which x_t = (1 - t) x_0 + t noise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from comfy.samplers import KSAMPLER
from torch import Tensor

from ...chunk_grpo_core.method.noise import Noise, draw_normal
from ...chunk_grpo_core.method.rules import SdeConfig
from ...chunk_grpo_core.method.schedule import falling_pairs
from ...chunk_grpo_core.method.walk import StepNoise, walk_to_end
from .session import check_flow_model

__all__ = ["check_part", "flow_sde_sampler", "is_whole_flow_sde", "sde_of"]

_OPTION = "chunk_grpo_sde"
_PART = "chunk_grpo_noise"
_WHOLE = (0.0, 1.0)


def check_part(noise_from: float, noise_to: float) -> None:
    """Refuse a part of the steps that is none."""
    if not 0.0 <= noise_from < noise_to <= 1.0:
        raise ValueError(
            f"noise_from is {noise_from} and noise_to {noise_to}; both must be in 0..1, noise_from "
            "below noise_to"
        )


def flow_sde_sampler(
    sde: SdeConfig, noise_from: float = _WHOLE[0], noise_to: float = _WHOLE[1]
) -> KSAMPLER:
    """Make a SAMPLER that follows ``sde``; :func:`sde_of` reads the settings back.

    Args:
        sde: Rule and eta.
        noise_from: Steps before this fraction of all steps, 0..1, follow the ODE.
        noise_to: Steps after this fraction do so, too.

    Raises:
        ValueError: ``noise_from`` is not below ``noise_to``.
    """
    check_part(noise_from, noise_to)
    return KSAMPLER(sample_flow_sde, extra_options={_OPTION: sde, _PART: (noise_from, noise_to)})


def is_whole_flow_sde(sampler: object) -> bool:
    """Whether a SAMPLER is a Flow SDE Sampler that follows its rule on all steps."""
    return _options_of(sampler).get(_PART) == _WHOLE


def sde_of(sampler: object) -> SdeConfig:
    """Read the settings of a SAMPLER made by :func:`flow_sde_sampler`.

    Raises:
        ValueError: It is another sampler, whose steps have no density to train on; or it adds noise
            to a part of the steps only.
    """
    options = _options_of(sampler)
    sde = options.get(_OPTION)
    if sde is None:
        name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler))
        raise ValueError(
            f"the sampler is {name}; connect a Flow SDE Sampler, whose steps have the known "
            "probabilities that training needs"
        )
    noise_from, noise_to = options[_PART]
    if (noise_from, noise_to) != _WHOLE:
        raise ValueError(
            f"the sampler has noise_from {noise_from} and noise_to {noise_to}, which is for "
            "pictures made with SamplerCustomAdvanced; rollouts and training need 0 and 1"
        )
    return sde


def _options_of(sampler: object) -> dict[str, Any]:
    return getattr(sampler, "extra_options", {})


def sample_flow_sde(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    chunk_grpo_sde: SdeConfig | None = None,
    chunk_grpo_noise: tuple[float, float] = _WHOLE,
) -> Tensor:
    """Walk down ``sigmas`` by the rule, and by the ODE in steps whose middle lies outside
    ``chunk_grpo_noise``; the last step into 0 is deterministic.

    Raises:
        ValueError: ``sigmas`` do not fall within 0..1, or the MODEL is no flow model.
    """
    sde, extra_args = chunk_grpo_sde or SdeConfig(), extra_args or {}
    check_flow_model(model.inner_model.model_patcher)
    try:
        pairs = falling_pairs(sigmas.tolist())
    except ValueError as error:
        raise ValueError(f"sigmas of the Flow SDE Sampler: {error}") from error
    steps = count()

    def velocity(x_t: Tensor, t: float) -> Tensor:
        denoised = model(x_t, x_t.new_full((len(x_t),), t), **extra_args)
        if callback is not None:
            step = next(steps)
            callback({"x": x_t, "i": step, "sigma": sigmas[step], "denoised": denoised})
        return (x_t - denoised) / t

    def draw() -> Tensor:
        return draw_normal(generators, x.shape[1:]).to(x)

    generators = Noise(False, int(extra_args.get("seed") or 0), len(x)).generators()
    noise_from, noise_to = chunk_grpo_noise
    is_noisy = [noise_from <= (step + 0.5) / len(pairs) <= noise_to for step in range(len(pairs))]
    noise = StepNoise(sde, torch.tensor(is_noisy).expand(len(x), -1), draw)
    return walk_to_end(velocity, x, pairs, noise=noise if sde.is_stochastic else None)
