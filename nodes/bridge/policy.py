"""A ComfyUI MODEL and VAE as the core's ``Policy``.

One :meth:`NativePolicy.run` is one call of a ComfyUI guider whose sampler hands a velocity to the
caller. Loading, conditioning, CFG and every patch on the MODEL are therefore ComfyUI's own.

Legend: B samples in one call; latents are the model's internal ones (``process_latent_in`` is
applied), in which noise is N(0, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...chunk_grpo_core.export import native_lora
from ...chunk_grpo_core.lora import LoraConfig
from ...chunk_grpo_core.policy import Velocity
from .adapter import HookLora
from .conditioning import Conditioning, select, tagged
from .session import check_flow_model, training_session, without_dynamic_vram

__all__ = ["NativePolicy", "latent_shape_of"]

T = TypeVar("T")


def latent_shape_of(model: ModelPatcher, latent: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of one latent of an (empty) LATENT as ``model`` wants it, without the batch axis.

    Raises:
        ValueError: The LATENT belongs to a model with another number of channels.
    """
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    channels = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        raise ValueError(
            f"the LATENT has {samples.shape[1]} channels and this MODEL needs {channels}; "
            "connect an empty latent, for example from EmptySD3LatentImage"
        )
    return tuple(samples.shape[1:])


class _Borrow(comfy.samplers.Sampler):
    """A sampler that samples nothing: it lends the guider to ``work``."""

    def __init__(self, work: Callable[[Any, dict[str, Any]], Any]) -> None:
        self.work = work
        self.result: Any = None

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        self.result = self.work(model_wrap, extra_args)
        return noise


class NativePolicy:
    """See :class:`~chunk_grpo_core.policy.Policy`."""

    def __init__(
        self,
        model: ModelPatcher,
        vae: VAE | None,
        conditioning: Mapping[str, Conditioning],
        latent_shape: tuple[int, ...],
        lora: LoraConfig,
        seed: int,
        *,
        negative: Conditioning | None = None,
        cfg: float = 1.0,
        batch: int = 1,
        name: str | None = None,
    ) -> None:
        """Prepare; nothing is loaded and the MODEL is not changed.

        Args:
            model: A flow-matching MODEL, with or without LoRAs stacked on it.
            vae: Its VAE; None if nothing will be decoded.
            conditioning: Prompt text -> its positive CONDITIONING.
            latent_shape: Shape of one latent (see :func:`latent_shape_of`).
            lora: Size and place of the LoRA to train.
            seed: Seed of its initial factors.
            negative: Negative CONDITIONING; needed when ``cfg`` is not 1.
            cfg: Scale of classifier-free guidance; 1 means none.
            batch: Largest B that will be asked for, for the memory estimate.
            name: Name of the base model in records.

        Raises:
            ValueError: Not a flow MODEL, no prompts, unsupported conditioning, a cfg without
                negative conditioning, or no layer to train.
        """
        check_flow_model(model)
        if not conditioning:
            raise ValueError("there are no prompts to train on")
        if cfg != 1.0 and negative is None:
            raise ValueError(f"cfg is {cfg}; connect negative conditioning, or set cfg to 1")
        self._model = model
        self._vae = vae
        self._shape = tuple(latent_shape)
        self._prompts = tuple(conditioning)
        self._positive = [
            entry for prompt in conditioning for entry in tagged(conditioning[prompt], prompt)
        ]
        self._negative = None if cfg == 1.0 else tagged(negative or [], "negative")
        self._cfg = cfg
        self._batch = batch
        self._name = name or f"comfyui/{type(model.model).__name__}"
        self._adapter = HookLora(model, lora, seed)
        self._trainee: ModelPatcher | None = None

    @property
    def name(self) -> str:
        """Name of the base model, for records."""
        return self._name

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent without the batch axis."""
        return self._shape

    @property
    def device(self) -> torch.device:
        """Where x_t must live."""
        return self._model.load_device

    @property
    def adapter(self) -> HookLora:
        """The LoRA under training."""
        return self._adapter

    def run(self, work: Callable[[Velocity], T]) -> T:
        """Load the MODEL, call ``work(velocity)`` with autograd enabled, and let the MODEL go."""
        if self._trainee is None:
            self._trainee = without_dynamic_vram(self._model)
        sampler = _Borrow(lambda guider, extra_args: work(self._velocity(guider, extra_args)))
        noise = torch.zeros(1, *self._shape).expand(self._batch, *self._shape)
        with training_session(self._trainee, self._adapter, noise.shape) as session:
            guider = comfy.samplers.CFGGuider(session)
            conds = {"positive": self._positive}
            if self._negative is not None:
                conds["negative"] = self._negative
            guider.inner_set_conds(conds)
            guider.set_cfg(self._cfg)
            # Two sigmas stand for a schedule; process_conds and model hooks expect one.
            sigmas = torch.tensor([1.0, 0.0])
            guider.sample(noise, noise, sampler, sigmas, disable_pbar=True, seed=0)
        return sampler.result

    def _velocity(self, guider: comfy.samplers.CFGGuider, extra_args: dict[str, Any]) -> Velocity:
        processed = guider.conds["positive"]
        entries = {prompt: select(processed, prompt) for prompt in self._prompts}

        def velocity(x_t: Tensor, t: float, prompt: str) -> Tensor:
            # ComfyUI averages the entries of one list, so each call sees one prompt's entries only.
            if prompt not in entries:
                raise ValueError(f"no conditioning was given for the prompt {prompt!r}")
            guider.conds = {**guider.conds, "positive": entries[prompt]}
            sigma = torch.full((x_t.shape[0],), t, device=x_t.device)
            return (x_t - guider(x_t, sigma, **extra_args)) / t  # denoised = x_t - t v_t

        return velocity

    def decode(self, x_0: Tensor) -> Tensor:
        """See :class:`~chunk_grpo_core.policy.Policy`."""
        if self._vae is None:
            raise ValueError("this policy was made without a VAE and cannot decode")
        with torch.inference_mode():
            latents = self._model.model.process_latent_out(x_0.detach().float())
            images = self._vae.decode(latents)
        with torch.inference_mode(False):
            images = images.detach().clone().to("cpu", torch.float32)
            images = images.reshape(-1, *images.shape[-3:])  # a video VAE adds an axis of frames
            return images[..., :3].clamp(0.0, 1.0)

    def lora_model(self) -> dict[str, Tensor]:
        """The LoRA as a LORA_MODEL: what LoraModelLoader and SaveLoRA of ComfyUI take."""
        with torch.inference_mode(False):
            return native_lora(self._adapter.state_dict(), self._adapter.config.file_alpha)
