"""The embedded tiny FLUX as a policy."""

from __future__ import annotations

from pathlib import Path

from ...lora.adapter import LoraConfig
from ..flux.policy import FluxPolicy
from .model import ASSET, LATENT_SHAPE, load_tiny_flux

__all__ = ["tiny_policy"]


def tiny_policy(lora: LoraConfig | None = None, seed: int = 0, path: Path = ASSET) -> FluxPolicy:
    """Load the tiny FLUX and put a fresh LoRA on it.

    Raises:
        FileNotFoundError: The asset is missing.
        ImportError: diffusers, peft or safetensors is not installed.
    """
    flux = load_tiny_flux(path)
    return FluxPolicy(
        name="tiny-flux",
        transformer=flux.transformer,
        encode=lambda caption: flux.text.encode([caption]),
        decode=flux.codec.decode,
        encode_pictures=flux.codec.encode,
        latent_shape=LATENT_SHAPE,
        lora=lora or LoraConfig(),
        seed=seed,
    )
