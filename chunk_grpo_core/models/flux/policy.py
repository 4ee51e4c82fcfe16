"""FLUX.1 on diffusers as a :class:`~chunk_grpo_core.method.policy.Policy`.

The transformer works on tokens: 2 x 2 latent pixels are one token, packed channel first;
``img_ids`` hold (0, row, column), ``txt_ids`` are zero, time is in 0..1.

Legend: B samples, C latent channels, h w latent size (even), n = h w / 4 tokens, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...lora.adapter import LoraConfig, PeftAdapter
from ...method.policy import Velocity
from ..attention import without_cudnn_attention
from ..loss_scale import LossScale

__all__ = ["FluxPolicy", "pack_latents", "predict_velocity", "unpack_latents"]

T = TypeVar("T")
_CAPTIONS = 64
"""Captions whose features stay on the device: 4 MiB each for FLUX.1."""


def pack_latents(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> tokens (B, n, 4 C), in the order of diffusers' FluxPipeline.

    Raises:
        ValueError: The shape is not (B, C, h, w) with h and w even.
    """
    if latents.ndim != 4 or latents.shape[2] % 2 or latents.shape[3] % 2:
        raise ValueError(f"latents must be (B, C, even, even), got {tuple(latents.shape)}")
    b, c, h, w = latents.shape
    blocks = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, n, 4 C) -> latents (B, C, height, width). Inverse of :func:`pack_latents`."""
    b, n, d = tokens.shape
    if height % 2 or width % 2 or n != height * width // 4:
        raise ValueError(f"{n} tokens do not fill latents of {height} x {width}")
    blocks = tokens.view(b, height // 2, width // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(b, d // 4, height, width)


def image_ids(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Positions (0, row, column) of the tokens of latents of this size, float32, (n, 3)."""
    ids = torch.zeros(height // 2, width // 2, 3, device=device)
    ids[..., 1] = torch.arange(height // 2, device=device)[:, None]
    ids[..., 2] = torch.arange(width // 2, device=device)[None, :]
    return ids.reshape(-1, 3)


def predict_velocity(
    transformer: Any,
    x_t: Tensor,
    t: Tensor,
    features: Tensor,
    pooled: Tensor,
    guidance: float | None = None,
) -> Tensor:
    """Velocity of noisy latents.

    Args:
        transformer: A FluxTransformer2DModel.
        x_t: Noisy latents (B, C, h, w).
        t: Times in 0..1, shape (B,).
        features: Text features (B, L, D).
        pooled: Pooled text features (B, P).
        guidance: Distilled guidance scale; None for models without guidance embedding.

    Returns:
        Velocity (B, C, h, w), float32; the transformer computes in its own dtype.
    """
    height, width = x_t.shape[-2:]
    dtype = transformer.dtype
    scale = None if guidance is None else torch.full((len(x_t),), guidance, device=x_t.device)
    (out,) = transformer(
        hidden_states=pack_latents(x_t).to(dtype),
        encoder_hidden_states=features.to(dtype),
        pooled_projections=pooled.to(dtype),
        timestep=t,
        guidance=scale,
        img_ids=image_ids(height, width, x_t.device),
        txt_ids=torch.zeros(features.shape[1], 3, device=x_t.device),
        return_dict=False,
    )
    return unpack_latents(out.float(), height, width)


class FluxPolicy:
    """A diffusers FLUX transformer with a peft LoRA."""

    mixes_times = True
    """See :class:`~chunk_grpo_core.method.policy.Policy`."""

    def __init__(
        self,
        *,
        name: str,
        transformer: nn.Module,
        encode: Callable[[str], tuple[Tensor, Tensor]],
        decode: Callable[[Tensor], Tensor],
        latent_shape: tuple[int, ...],
        lora: LoraConfig,
        seed: int = 0,
        guidance: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Freeze the transformer and put a fresh LoRA on it.

        Args:
            name: Name of the base model, for records.
            transformer: A FluxTransformer2DModel; it is modified (the LoRA is injected).
            encode: Caption -> text features (1, L, D) and pooled features (1, P); the answers for
                the last few captions are kept.
            decode: Latents (B, C, h, w) -> pictures (B, H, W, 3) in 0..1.
            latent_shape: (C, h, w).
            lora: Size and place of the adapter.
            seed: Seed of the adapter's initial weights.
            guidance: See :func:`predict_velocity`.
            device: Where the model will compute; where the transformer is when None.
        """
        self._name, self._latent_shape, self._guidance = name, tuple(latent_shape), guidance
        self._encode, self._decode = lru_cache(_CAPTIONS)(torch.no_grad()(encode)), decode
        self._adapter = PeftAdapter(transformer, lora, seed)
        self._transformer = transformer.eval()
        self._scaled = self._loss_scale()
        self._device = device or next(transformer.parameters()).device

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
        """The FluxTransformer2DModel, the LoRA in it."""
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

    def run(self, work: Callable[[Velocity], T]) -> T:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        with without_cudnn_attention():
            return work(self._velocity)

    def _loss_scale(self) -> Callable[[Tensor], Tensor]:
        """Other types than float16 have no need of it, and it would change no bit."""
        if self._transformer.dtype != torch.float16:
            return lambda v_t: v_t
        return LossScale(self._adapter.parameters(), self._latent_shape)

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> Tensor:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._decode(x_0.to(self._device)).clamp(0.0, 1.0).cpu().float()

    def _velocity(self, x_t: Tensor, t: float | Tensor, prompt: str) -> Tensor:
        features, pooled = (part.expand(len(x_t), *part.shape[1:]) for part in self._encode(prompt))
        times = t if isinstance(t, Tensor) else torch.full((len(x_t),), t, device=x_t.device)
        velocity = predict_velocity(self._transformer, x_t, times, features, pooled, self._guidance)
        return self._scaled(velocity)
