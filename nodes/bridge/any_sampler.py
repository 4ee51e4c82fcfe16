"""Whatever SAMPLER a user has, as the core's ``Sampler``: rollouts as pictures are made.

It runs inside a phase of :class:`~.policy.NativePolicy`, on the guider that the phase borrows, so
that CFG, patches and the hooks of the LoRA are those of every other call.

A picture may depend on its own initial noise and seed alone. ComfyUI's samplers take whole batches:
they do without noise, or take it from a function that they are handed, which draws for each sample
from a generator of its own. All others (Brownian noise, the global generator, samplers of other
packs) are given one sample at a time, with its seed.

Legend: B samples; latents are the model's internal ones, in which x_t = (1 - t) x_0 + t noise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.model_patcher
import comfy.samplers
import torch
from torch import Tensor

from ...chunk_grpo_core.method.noise import draw_normal
from ...chunk_grpo_core.method.rules import SdeConfig
from ...chunk_grpo_core.method.schedule import TimeGrid
from ...chunk_grpo_core.method.stream import Stream
from ...chunk_grpo_core.prompts.example import Example
from ...chunk_grpo_core.train.batch_limit import BatchLimit
from .policy import NativePolicy
from .sampler import is_whole_flow_sde, sde_of

__all__ = ["AnySampler", "check_sampler", "name_of", "rollouts_of"]

_NO_NOISE = SdeConfig(rule="ode", eta=0.0)
_STOPS_EARLY = "it stops one level before 0 and leaves noise in the pictures"
_UNFIT = {
    "dpm_fast": _STOPS_EARLY,
    "dpm_adaptive": _STOPS_EARLY,
}
"""Samplers of ComfyUI that do not finish pictures of flow models -> why."""


def rollouts_of(sampler: object, algorithm: str, cfg: float) -> tuple[SdeConfig, object | None]:
    """How an algorithm samples with a SAMPLER: the rule of the library's walk, and the SAMPLER
    itself if it samples instead of that walk.

    Args:
        sampler: A SAMPLER, or None if none is connected.
        algorithm: Name of the algorithm.
        cfg: Scale of classifier-free guidance.

    Raises:
        ValueError: The algorithm cannot train with it or without one, or it does not finish
            pictures of flow models.
    """
    if algorithm == "preference":
        if sampler is not None:
            raise ValueError(
                "sampler is connected, but the algorithm preference, which Preference Objective "
                "sets, makes no rollouts; take the link off"
            )
        return SdeConfig(), None
    if sampler is None:
        raise ValueError(
            "sampler is not connected; connect Flow SDE Sampler, or with Forward Objective any "
            "SAMPLER; or choose a recipe"
        )
    if algorithm != "forward":
        try:
            return sde_of(sampler), None
        except ValueError as error:
            raise ValueError(
                f"{error}. Or put Forward Objective in front of settings: the algorithm forward "
                "trains with any sampler"
            ) from error
    if is_whole_flow_sde(sampler):
        return sde_of(sampler), None
    check_sampler(sampler, cfg)
    return _NO_NOISE, sampler


def name_of(sampler: object) -> str:
    """Name of a SAMPLER with its options, for records: ``er_sde(max_stage=2)``."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    options = dict(getattr(sampler, "extra_options", {}))
    shown = [f"{key}={_shown(value)}" for key, value in sorted(options.items())]
    return name.removeprefix("sample_").removesuffix("_function") + (
        f"({', '.join(shown)})" if shown else ""
    )


def _shown(value: object) -> str:
    is_plain = value is None or isinstance(value, (bool, int, float, str, SdeConfig, tuple))
    return str(value) if is_plain else getattr(value, "__name__", type(value).__name__)


def check_sampler(sampler: object, cfg: float) -> None:
    """Refuse a SAMPLER that does not finish pictures of flow models, or needs other guidance.

    Raises:
        ValueError: It does; the message names it.
    """
    name = name_of(sampler)
    plain = name.partition("(")[0]
    if plain in _UNFIT:
        raise ValueError(f"the sampler is {name}: {_UNFIT[plain]}; choose another one, as euler")
    if "cfg_pp" in name and cfg == 1.0:
        raise ValueError(
            f"the sampler is {name}, which steps away from the negative prompt, but cfg is 1; set "
            "cfg above 1 and connect negative, or choose a sampler without cfg_pp"
        )


class AnySampler:
    """See :class:`~chunk_grpo_core.method.sampler.Sampler`."""

    def __init__(self, sampler: Any, policy: NativePolicy, limit: BatchLimit) -> None:
        """Prepare; nothing is sampled.

        Args:
            sampler: The SAMPLER.
            policy: Whose phases it samples in.
            limit: Samples that fit into memory at once.
        """
        self._sampler, self._policy, self._limit = sampler, policy, limit
        self._function = _batched_function(sampler)
        takes_noise = self._function is not None and _takes_noise(self._function)
        self.draws_noise = self._function is None or takes_noise
        self._noise_is_handed = takes_noise

    @property
    def name(self) -> str:
        """See :func:`name_of`."""
        return name_of(self._sampler)

    @torch.no_grad()
    def sample(
        self, stream: Stream, example: Example, grid: TimeGrid, x_1: Tensor, seeds: Sequence[int]
    ) -> Tensor:
        """See :class:`~chunk_grpo_core.method.sampler.Sampler`.

        Raises:
            ValueError: What it made is not finite, or has another shape.
        """
        sigmas = torch.tensor(grid.sigmas)

        def piece(x: Tensor, numbers: Tensor) -> Tensor:
            size = 1 if self._function is None else len(x)
            calls = zip(x.split(size), numbers.split(size), strict=True)
            return torch.cat(
                [
                    self._call(stream, example, sigmas, part, [seeds[n] for n in which.tolist()])
                    for part, which in calls
                ]
            )

        return self._limit.join(piece, x_1, torch.arange(len(x_1)))

    def _call(
        self,
        stream: Stream,
        example: Example,
        sigmas: Tensor,
        x_1: Tensor,
        seeds: Sequence[int],
    ) -> Tensor:
        """x_0 of one call of the SAMPLER, CPU float32, shape (B, *latent)."""
        borrowed = self._policy.borrowed(example)
        device = stream.device

        def stepped(step: int, denoised: Tensor, *_: object) -> None:
            stream.check_cancel()
            self._policy.on_denoised(denoised)

        noise, levels = x_1.to(device), sigmas.to(device)
        options = comfy.model_patcher.create_model_options_clone(borrowed.options)
        options.setdefault("transformer_options", {})["sample_sigmas"] = levels
        with torch.random.fork_rng(_cuda_devices(device)):
            torch.manual_seed(seeds[0])
            x_0 = self._with_noise_of(seeds, noise).sample(
                borrowed.guider,
                levels,
                {"model_options": options, "seed": seeds[0]},
                stepped,
                noise,
                torch.zeros_like(noise),
                None,
                True,
            )
        stream.check_cancel()
        if x_0.shape != x_1.shape or not x_0.isfinite().all():
            what = "not finite" if x_0.shape == x_1.shape else f"of shape {tuple(x_0.shape)}"
            raise ValueError(
                f"what the sampler {self.name} made of this MODEL is {what}; choose another "
                "sampler, as euler, or other sigmas"
            )
        return x_0.detach().to("cpu", torch.float32)

    def _with_noise_of(self, seeds: Sequence[int], like: Tensor) -> Any:
        """The SAMPLER with the noise of these samples, where it is handed any."""
        if not self._noise_is_handed:
            return self._sampler
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def noise_sampler(sigma: object, sigma_next: object) -> Tensor:
            return draw_normal(generators, like.shape[1:]).to(like)

        options = {**self._sampler.extra_options, "noise_sampler": noise_sampler}
        kind = comfy.samplers.KSAMPLER
        return kind(self._sampler.sampler_function, options, self._sampler.inpaint_options)


def _batched_function(sampler: object) -> Callable[..., Tensor] | None:
    """The function of a SAMPLER that may take whole batches; None if it takes one at a time."""
    if type(sampler) is not comfy.samplers.KSAMPLER:
        return None
    function = inspect.unwrap(sampler.sampler_function)
    options = sampler.extra_options
    is_ours_to_hand_noise = not options.get("s_churn") and "noise_sampler" not in options
    draws_brownian = k_diffusion.BrownianTreeNoiseSampler.__name__ in function.__code__.co_names
    is_comfys = function.__module__ in _COMFYS
    return function if is_comfys and is_ours_to_hand_noise and not draws_brownian else None


_COMFYS = (k_diffusion.__name__, "comfy.extra_samplers.uni_pc")


def _takes_noise(function: Callable[..., Tensor]) -> bool:
    return "noise_sampler" in inspect.signature(function).parameters


def _cuda_devices(device: torch.device | str) -> list[torch.device]:
    device = torch.device(device)
    return [device] if device.type == "cuda" else []
