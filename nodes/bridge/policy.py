"""A ComfyUI MODEL and VAE as the core's ``Policy``.

One :meth:`NativePolicy.run` is one call of a ComfyUI guider whose sampler hands a velocity to the
caller. Loading, conditioning, CFG and every patch on the MODEL are therefore ComfyUI's own.

Legend: B samples in one call; latents are the model's internal ones (``process_latent_in`` is
applied), in which noise is N(0, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...chunk_grpo_core.lora.adapter import LoraConfig
from ...chunk_grpo_core.lora.files import native_lora
from ...chunk_grpo_core.method.policy import Velocity
from ...chunk_grpo_core.models.loss_scale import LossScale
from ...chunk_grpo_core.prompts.example import Example, Prompt
from ...chunk_grpo_core.train.batch_limit import BatchLimit
from .activations import Activations, free_memory
from .adapter import HookLora
from .conditioning import (
    Conditioning,
    Processed,
    check_guided,
    check_noticed,
    check_references,
    processed,
    trainable,
)
from .session import check_flow_model, training_session, without_dynamic_vram
from .shift_patch import warn_of_shift
from .times import takes_mixed_times

__all__ = ["Borrowed", "NativePolicy"]

T = TypeVar("T")


class _Borrow(comfy.samplers.Sampler):
    """A sampler that samples nothing: it lends the guider to ``work``."""

    def __init__(self, work: Callable[[Any, dict[str, Any], Tensor], Any]) -> None:
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
        self.result = self.work(model_wrap, extra_args, noise)
        return noise


class Borrowed(NamedTuple):
    """The guider of a phase, ready for one prompt."""

    guider: comfy.samplers.CFGGuider
    options: dict[str, Any]
    """``model_options`` of its calls."""


class NativePolicy:
    """See :class:`~chunk_grpo_core.method.policy.Policy`."""

    def __init__(
        self,
        model: ModelPatcher,
        vae: VAE | None,
        conditioning: Mapping[str, Conditioning],
        latent_shape: tuple[int, ...],
        lora: LoraConfig | None,
        seed: int = 0,
        *,
        negative: Conditioning | None = None,
        cfg: float = 1.0,
        batch: int = 1,
        limit: BatchLimit | None = None,
        activation_offloading: bool = False,
        sigmas: Sequence[float] = (1.0, 0.0),
        name: str | None = None,
    ) -> None:
        """Prepare; nothing is loaded and the MODEL is not changed.

        Args:
            model: A flow-matching MODEL, with or without LoRAs stacked on it.
            vae: Its VAE; None if nothing will be decoded.
            conditioning: Prompt text -> its positive CONDITIONING; that of the empty text is for
                rewards that ask the MODEL itself.
            latent_shape: Shape of one latent (see :func:`.latents.latent_shape_of`).
            lora: Size and place of the LoRA to train; None for a policy that is only looked at, so
                that the MODEL is sampled as it is.
            seed: Seed of its initial factors.
            negative: Negative CONDITIONING; needed when ``cfg`` is not 1.
            cfg: Scale of classifier-free guidance; 1 means none.
            batch: Largest B that will be asked for, for the memory estimate.
            limit: What has turned out to fit; makes the estimate smaller.
            activation_offloading: What goes into the blocks waits for backward in system memory.
                Otherwise blocks keep all that backward needs, as far as memory lasts.
            sigmas: The levels that the model is sampled with. A few models (HunyuanImage 2.1
                distilled) look up there where a step leads to.
            name: Name of the base model in records.

        Raises:
            ValueError: Not a flow MODEL, no prompts, unsupported conditioning, a cfg without
                negative conditioning, no layer to train, or a VAE for latents of many frames.
        """
        check_flow_model(model)
        warn_of_shift(model)
        if not conditioning:
            raise ValueError("there are no prompts to train on")
        check_guided(cfg, has_negative=negative is not None)
        if vae is not None and len(latent_shape) == 4 and latent_shape[1] != 1:
            raise ValueError(
                f"the LATENT has {latent_shape[1]} frames; a reward looks at one picture of each "
                "latent, so connect an empty latent of length 1"
            )
        self._model = model
        self._vae = vae
        self._shape = tuple(latent_shape)
        self._positive = {text: trainable(c, text) for text, c in conditioning.items()}
        self._negative = None if cfg == 1.0 else trainable(negative or [], "negative")
        form = model.get_model_object("latent_format")
        check_references(self._positive, self._negative, form)
        self._cfg = cfg
        self._batch = batch
        self._limit = limit or BatchLimit()
        self._sigmas = torch.tensor(sigmas, dtype=torch.float32)
        guidance = "" if cfg == 1.0 else f" (cfg {cfg:g})"
        self._name = name or f"comfyui/{type(model.model).__name__}{guidance}"
        self._adapter: HookLora | None = None
        self._scaled: Callable[[Tensor], Tensor] = lambda v_t: v_t
        if lora is not None:
            activations = None
            if not activation_offloading:
                activations = Activations(partial(free_memory, model.load_device))
                self._limit.relieve = activations.give_up
            self._adapter = HookLora(model, lora, seed, activations=activations)
            self._scaled = LossScale(self._adapter.parameters(), self._shape)
        self._mixes_times: bool | None = None
        self._trainee: ModelPatcher | None = None
        self._lent: Callable[[Prompt], Borrowed] | None = None
        self._is_noticed = False
        self.on_denoised: Callable[[Tensor], object] = lambda denoised: None
        """Told what each call without gradients expects its samples to become, (B, *latent)."""

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
    def adapter(self) -> HookLora | None:
        """The LoRA under training."""
        return self._adapter

    @property
    def mixes_times(self) -> bool:
        """Whether the MODEL takes a time for each sample, as its first phase found out."""
        return bool(self._mixes_times)

    @property
    def is_compiled(self) -> bool:
        """False: compiled blocks are left out in training."""
        return False

    @contextmanager
    def unguided(self) -> Iterator[None]:
        """See :class:`~chunk_grpo_core.method.policy.Guided`."""
        before, self._cfg = self._cfg, 1.0
        try:
            yield
        finally:
            self._cfg = before

    def run(self, work: Callable[[Velocity], T]) -> T:
        """Load the MODEL, call ``work(velocity)`` with autograd enabled, and let the MODEL go."""
        if self._trainee is None:
            self._trainee = without_dynamic_vram(self._model)

        def lent(*borrowed: Any) -> T:
            self._lent, velocity = self._with_prompts(*borrowed)
            try:
                if self._mixes_times is None and self._adapter is not None and self._batch > 1:
                    self._mixes_times = self._try_times(velocity)
                return work(velocity)
            finally:
                self._lent = None

        sampler = _Borrow(lent)
        batch = min(self._batch, self._limit.size or self._batch)
        noise = torch.zeros(1, *self._shape).expand(batch, *self._shape)
        with training_session(self._trainee, self._adapter, noise.shape) as session:
            guider = comfy.samplers.CFGGuider(session)
            # One prompt stands for all in ComfyUI's memory estimate.
            guider.inner_set_conds(self._conditioning(next(iter(self._positive))))
            guider.set_cfg(self._cfg)
            guider.sample(noise, noise, sampler, self._sigmas, disable_pbar=True, seed=0)
        return sampler.result

    def _conditioning(self, text: str) -> dict[str, Conditioning]:
        conditioning = {"positive": self._positive[text]}
        return conditioning | ({"negative": self._negative} if self._negative else {})

    def borrowed(self, example: Prompt) -> Borrowed:
        """The guider of the phase under way, its conditioning that of one prompt: for samplers that
        call it themselves.

        Raises:
            RuntimeError: No phase is under way.
            ValueError: The prompt has no conditioning.
        """
        if self._lent is None:
            raise RuntimeError("a sampler was called outside the phases of its policy")
        return self._lent(example)

    def _with_prompts(
        self, guider: comfy.samplers.CFGGuider, extra_args: dict[str, Any], noise: Tensor
    ) -> tuple[Callable[[Prompt], Borrowed], Velocity]:
        """The guider with the conditioning of any prompt, and its velocity."""
        entries: dict[str, Processed] = {}

        def called(x_t: Tensor, conditioning: Processed) -> Tensor:
            guider.conds = conditioning
            return guider(x_t, torch.full((len(x_t),), 0.5, device=x_t.device), **extra_args)

        def lent(example: Prompt) -> Borrowed:
            text = Example.of(example).text
            if text not in self._positive:
                raise ValueError(f"no conditioning was given for the prompt {text!r}")
            if text not in entries:
                conditioning = self._conditioning(text)
                if not self._is_noticed:
                    check_noticed(called, guider.inner_model, noise, conditioning)
                    self._is_noticed = True
                entries[text] = processed(guider.inner_model, noise, conditioning)
            # ComfyUI averages the entries of one list, so each call sees one prompt's entries only.
            guider.conds = entries[text]
            return Borrowed(guider, extra_args["model_options"])

        def velocity(x_t: Tensor, t: float | Tensor, example: Prompt) -> Tensor:
            lent(example)
            sigma = torch.as_tensor(t, dtype=torch.float32, device=x_t.device).expand(len(x_t))
            denoised = guider(x_t, sigma, **extra_args)  # x_t - t v_t
            if not torch.is_grad_enabled():
                self.on_denoised(denoised)
            times = t.view(-1, *[1] * (x_t.ndim - 1)) if isinstance(t, Tensor) else t
            return self._scaled((x_t - denoised) / times)

        return lent, velocity

    def _try_times(self, velocity: Velocity) -> bool:
        prompt, model = next(iter(self._positive)), self._model.model
        guider, options = self.borrowed(prompt)
        dtype = model.manual_cast_dtype or model.get_dtype()
        call = partial(velocity, example=prompt)
        levels = self._sigmas.tolist()
        return takes_mixed_times(
            call, self._shape, self.device, guider.conds, options, dtype, levels
        )

    def decode(self, x_0: Tensor) -> Tensor:
        """See :class:`~chunk_grpo_core.method.policy.Policy`.

        One picture at a time: where several do not fit, ComfyUI decodes all of them in tiles, and
        those are other pictures.
        """
        if self._vae is None:
            raise ValueError("this policy was made without a VAE and cannot decode")
        with torch.inference_mode(False):
            return torch.cat([self._decode_one(self._vae, latent) for latent in x_0.split(1)])

    def _decode_one(self, vae: VAE, latent: Tensor) -> Tensor:
        with torch.inference_mode():
            latent = self._model.model.process_latent_out(latent.detach().float())
            image = vae.decode(latent)
        image = image.detach().clone().to("cpu", torch.float32)
        image = image.reshape(1, *image.shape[-3:])  # a video VAE adds one frame
        return image[..., :3].clamp(0.0, 1.0)

    def encode(self, images: Tensor) -> Tensor | None:
        """See :class:`~chunk_grpo_core.method.policy.PictureEncoder`; one picture at a time, as
        :meth:`decode` does. None if the VAE can only decode.

        Raises:
            ValueError: There is no VAE, or its latents are not those of the MODEL.
        """
        if self._vae is None:
            raise ValueError("this policy was made without a VAE and cannot encode")
        if not hasattr(getattr(self._vae, "first_stage_model", self._vae), "encode"):
            return None
        with torch.inference_mode(False):
            return torch.cat([self._encode_one(self._vae, image) for image in images.split(1)])

    def _encode_one(self, vae: VAE, image: Tensor) -> Tensor:
        with torch.inference_mode():
            latent = vae.encode(image)
        if latent.shape[1:] != self._shape:
            raise ValueError(
                f"the VAE makes latents of shape {tuple(latent.shape[1:])} of a picture, but the "
                f"MODEL and the LATENT need {self._shape}; connect the VAE that belongs to the "
                "MODEL"
            )
        with torch.inference_mode():
            latent = self._model.model.process_latent_in(latent.float())
        return latent.detach().clone().to("cpu", torch.float32)

    def lora_model(self) -> dict[str, Tensor]:
        """The LoRA as a LORA_MODEL: what LoraModelLoader and SaveLoRA of ComfyUI take.

        Raises:
            ValueError: There is none.
        """
        if self._adapter is None:
            raise ValueError("this policy was made without a LoRA")
        with torch.inference_mode(False):
            return native_lora(self._adapter.state_dict(), self._adapter.config.file_alpha)
