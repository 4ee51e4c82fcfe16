"""A diffusers transformer with a peft LoRA as a :class:`~chunk_grpo_core.method.policy.Policy`.

Here is what all such models need: the adapter, encoded captions that are kept, the scale of float16
gradients, pictures. A family adds its velocity, the names of its blocks and of its layers.

Legend: B samples, ``*latent`` the model's own latent shape.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from ..lora.adapter import LoraConfig, PeftAdapter
from ..method.policy import Velocity
from ..prompts.example import Example, Prompt
from .attention import without_cudnn_attention
from .loss_scale import LossScale

__all__ = ["DiffusersPolicy"]

T = TypeVar("T")
Conditioning = TypeVar("Conditioning")


class DiffusersPolicy(ABC, Generic[Conditioning]):
    """A diffusers transformer with a peft LoRA; ``Conditioning`` is what it reads of a caption."""

    mixes_times = True
    """See :class:`~chunk_grpo_core.method.policy.Policy`."""
    captions: ClassVar[int] = 64
    """Captions whose features stay on the device: 4 MiB each for FLUX.1."""
    blocks: tuple[str, ...]
    """Names of the transformer's lists of blocks, which are equal inside a list."""
    targets: Mapping[str, str]
    """A value of ``lora.targets`` (attention, attention+mlp, all-linear) -> regular expression over
    whole names of the transformer's layers."""

    def __init__(
        self,
        *,
        name: str,
        transformer: nn.Module,
        encode: Callable[[str], Conditioning],
        decode: Callable[[Tensor], Tensor],
        latent_shape: tuple[int, ...],
        lora: LoraConfig,
        seed: int = 0,
        device: torch.device | None = None,
        encode_pictures: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Freeze the transformer and put a fresh LoRA on it.

        Args:
            name: Name of the base model, for records.
            transformer: A model of diffusers; it is modified (the LoRA is injected).
            encode: Caption -> what the transformer reads of it, for one sample; the answers for the
                last few captions are kept.
            decode: Latents (B, *latent) -> pictures (B, H, W, 3) in 0..1.
            latent_shape: Shape of one latent, for example (C, h, w).
            lora: Size and place of the adapter.
            seed: Seed of the adapter's initial weights.
            device: Where the model will compute; where the transformer is when None.
            encode_pictures: Pictures (B, H, W, 3) in 0..1 -> latents, the inverse of ``decode``;
                the self-test checks one against the other.
        """
        self._name, self._latent_shape = name, tuple(latent_shape)
        self._encode, self._decode = lru_cache(self.captions)(torch.no_grad()(encode)), decode
        self._encode_pictures = encode_pictures
        self._adapter = PeftAdapter(transformer, lora, seed, self.targets)
        self._transformer = transformer.train(False)
        # Asked once: the answer walks through all modules, which takes 13 ms with FLUX.1 (its host
        # work for a whole call is 96).
        self._dtype = cast(torch.dtype, transformer.dtype)
        self._scaled = self._loss_scale()
        self._device = device or next(transformer.parameters()).device

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity of noisy latents.

        Args:
            x_t: Noisy latents (B, *latent), float32.
            t: Times in 0..1, shape (B,).
            conditioning: Answer of ``encode``, for one sample.

        Returns:
            Velocity (B, *latent), float32; its sign is that of noise - data.
        """

    @property
    def name(self) -> str:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._name

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._latent_shape

    @property
    def device(self) -> torch.device:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._device

    @property
    def transformer(self) -> nn.Module:
        """The model of diffusers, the LoRA in it."""
        return self._transformer

    @property
    def adapter(self) -> PeftAdapter:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._adapter

    @property
    def is_compiled(self) -> bool:
        """Whether blocks are compiled, so that calls with gradients have other last bits than calls
        without."""
        return any(module._compiled_call_impl for module in self._transformer.modules())

    def unguided(self) -> AbstractContextManager[None]:
        """See :class:`~chunk_grpo_core.method.policy.Guided`; a family with two calls of the
        transformer for each velocity leaves the second one out."""
        return nullcontext()

    def run(self, work: Callable[[Velocity], T]) -> T:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        with without_cudnn_attention():
            return work(self._velocity)

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> Tensor:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._decode(x_0.to(self._device)).clamp(0.0, 1.0).cpu().float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor | None:
        """See :class:`~chunk_grpo_core.method.policy.PictureEncoder`."""
        if self._encode_pictures is None:
            return None
        return self._encode_pictures(images.to(self._device)).cpu().float()

    def _loss_scale(self) -> Callable[[Tensor], Tensor]:
        """Other types than float16 have no need of it, and it would change no bit."""
        if self._dtype != torch.float16:
            return lambda v_t: v_t
        return LossScale(self._adapter.parameters(), self._latent_shape)

    def _velocity(self, x_t: Tensor, t: float | Tensor, example: Prompt) -> Tensor:
        times = t if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        return self._scaled(self.predict(x_t, times, self._encode(Example.of(example).text)))
