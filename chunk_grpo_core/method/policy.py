"""What the trainer needs of a model: a velocity, an adapter, and a way to see pictures.

Time runs ``t = 1`` (noise) to ``t = 0`` (data); :math:`x_t = (1 - t) x_0 + t \\epsilon` and the
model predicts the velocity :math:`v_t = \\epsilon - x_0`.

Legend: B samples in one call, H W picture size, ``*latent`` the model's own latent shape.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..prompts.example import Prompt

__all__ = [
    "Adapter",
    "Guided",
    "PictureEncoder",
    "Policy",
    "Velocity",
    "base_model",
    "trained_adapter",
    "without_guidance",
]

T = TypeVar("T")


class Velocity(Protocol):
    """The model as a function, valid only inside the :meth:`Policy.run` call that gave it."""

    def __call__(self, x_t: Tensor, t: Any, example: Prompt) -> Tensor:
        """Predict v_t for one example.

        Args:
            x_t: Noisy latents, float32, shape (B, *latent), on the policy's device.
            t: Time in (0, 1], the same for all B samples: a float. Of a policy that has
                ``mixes_times`` also a float32 tensor of shape (B,), a time for each.
            example: What all B samples show; a string is an example that is only its text. A model
                looks its conditioning up by what that depends on, such as ``example.text``.

        Returns:
            Velocity, float32, shape (B, *latent). Carries gradients to the adapter's parameters
            when autograd is enabled.
        """
        ...


class Adapter(Protocol):
    """The trainable part (a LoRA): its parameters, an off switch, its weights."""

    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable parameters, float32, always in the same order."""
        ...

    def disabled(self) -> AbstractContextManager[None]:
        """Inside this context, which may be inside another one, the model is the reference policy
        (adapter off)."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the weights, CPU float32: ``<module>.lora_A.weight`` and ``.lora_B.weight``."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy weights into the existing parameters (optimisers keep working).

        Raises:
            ValueError: Names or shapes differ; the message lists them.
        """
        ...


class Policy(Protocol):
    """A flow model, with an adapter where it trains. Implemented by ``models/`` and by the ComfyUI
    nodes."""

    @property
    def name(self) -> str:
        """Name of the base model, for records."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent without the batch axis, for example (16, 8, 8)."""
        ...

    @property
    def device(self) -> torch.device:
        """Where x_t must live for :class:`Velocity`."""
        ...

    @property
    def adapter(self) -> Adapter | None:
        """The adapter under training; None if the policy was made to be looked at only."""
        ...

    @property
    def mixes_times(self) -> bool:
        """Whether its velocity takes a time for each sample, so that an update can fill its
        micro-batches with several steps (``micro_batches.py``)."""
        ...

    @property
    def is_compiled(self) -> bool:
        """Whether calls with gradients may have other last bits than calls without."""
        ...

    def run(self, work: Callable[[Velocity], T]) -> T:
        """Bring the denoiser to its device, call ``work(velocity)``, and let it go again.

        One call is one phase (a rollout, an update); between phases the device is free for text
        encoder, decoder and reward model.
        """
        ...

    def decode(self, x_0: Tensor) -> Tensor:
        """Decode latents (B, *latent) to pictures (B, H, W, 3), CPU float32 in 0..1."""
        ...


@runtime_checkable
class PictureEncoder(Protocol):
    """A policy that may be able to undo :meth:`Policy.decode`."""

    def encode(self, images: Tensor) -> Tensor | None:
        """Encode pictures (B, H, W, 3) in 0..1 to latents (B, *latent); None without an encoder."""
        ...


@runtime_checkable
class Guided(Protocol):
    """A policy whose velocity may have classifier-free guidance in it."""

    def unguided(self) -> AbstractContextManager[None]:
        """Inside this context, which no phase may cross, the velocity is that of the prompt alone.
        A guidance that the model takes as an input (FLUX.1-dev) stays what it is."""
        ...


def without_guidance(policy: Policy) -> AbstractContextManager[None]:
    """Inside this context the policy has no classifier-free guidance."""
    return policy.unguided() if isinstance(policy, Guided) else nullcontext()


def base_model(policy: Policy) -> AbstractContextManager[None]:
    """Inside this context the policy is the model alone, its adapter (if it has one) off."""
    return policy.adapter.disabled() if policy.adapter else nullcontext()


def trained_adapter(policy: Policy) -> Adapter:
    """The adapter of a policy that must have one.

    Raises:
        ValueError: It has none.
    """
    if policy.adapter is None:
        raise ValueError(
            f"the policy {policy.name} has no adapter, so there is nothing to train; make it with "
            "a LoraConfig"
        )
    return policy.adapter
