"""The stochastic rules of the core as a SAMPLER for SamplerCustomAdvanced.

Legend: B samples; latents are the model's internal ones, in which x_t = (1 - t) x_0 + t noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.samplers import KSAMPLER
from torch import Tensor

from ...chunk_grpo_core.rollout import Noise
from ...chunk_grpo_core.sde import SdeConfig, sample_step
from .session import check_flow_model

__all__ = ["flow_sde_sampler", "sde_of"]

_OPTION = "chunk_grpo_sde"


def flow_sde_sampler(sde: SdeConfig) -> KSAMPLER:
    """Make a SAMPLER that follows ``sde``; :func:`sde_of` reads the settings back."""
    return KSAMPLER(_sample, extra_options={_OPTION: sde})


def sde_of(sampler: object) -> SdeConfig:
    """Read the settings of a SAMPLER made by :func:`flow_sde_sampler`.

    Raises:
        ValueError: It is another sampler, whose steps have no density to train on.
    """
    sde = getattr(sampler, "extra_options", {}).get(_OPTION)
    if sde is None:
        name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler))
        raise ValueError(
            f"the sampler is {name}; connect a Flow SDE Sampler, whose steps have the known "
            "probabilities that training needs"
        )
    return sde


def _sample(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    chunk_grpo_sde: SdeConfig | None = None,
) -> Tensor:
    """Walk down ``sigmas`` by the rule; the last step into 0 is deterministic."""
    sde, extra_args = chunk_grpo_sde or SdeConfig(), extra_args or {}
    check_flow_model(model.inner_model.model_patcher)
    pairs = list(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True))
    generators = Noise(False, int(extra_args.get("seed") or 0), len(x)).generators()
    for index, (t, s) in enumerate(pairs):
        denoised = model(x, x.new_full((len(x),), t), **extra_args)
        if callback is not None:
            callback({"x": x, "i": index, "sigma": sigmas[index], "denoised": denoised})
        transition = sde.transition(x, (x - denoised) / t, t, s)
        x = transition.mean
        if transition.std > 0:
            noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])
            x = sample_step(transition, noise.to(x))
    return x
