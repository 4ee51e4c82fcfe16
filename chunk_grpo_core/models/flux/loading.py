"""A FLUX.1 from disk as a policy that can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...lora.adapter import LoraConfig
from ...prompts.example import Prompt
from ..kept_weights import WEIGHTS, check_weights
from ..pipelines.scaling import KL, decoder, encoder
from ..speed import speed_up
from ..tensor_cache import TensorCache
from ..weight_file import read_header
from .config import FluxModel
from .files import find_part
from .policy import FluxPolicy
from .text import encode_prompts
from .transformer import load_transformer
from .vae import load_vae, pixels_per_latent

__all__ = ["flux_policy"]

_CACHE_BYTES = 16 * 2**30


def flux_policy(
    model: FluxModel,
    prompts: Sequence[Prompt],
    lora: LoraConfig | None = None,
    seed: int = 0,
    *,
    keep_on_cpu: bool = False,
) -> FluxPolicy:
    """Load a FLUX.1 and put a fresh LoRA on it.

    Text comes first: new prompts are encoded and the encoders freed before the transformer is read.

    Args:
        model: Where everything is.
        prompts: All prompts that the policy will be asked for.
        lora: Size and place of the adapter.
        seed: Seed of the adapter's initial weights.
        keep_on_cpu: Leave the transformer there, for :class:`~..sharding.ShardedPolicy` to spread.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is not what it was given for, or parts do not belong together.
        ImportError: A package is missing; the message says how to install it.
    """
    device = model.compute_device()
    check_weights(model.weights, device)
    dtype = WEIGHTS[model.weights]
    # T5 overflows in float16.
    text_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
    if model.path and not model.transformer:
        model.check_pipeline("FluxPipeline")
    vae_source, transformer_source = model.part("vae"), model.part("transformer")
    for kind, source in (("vae", vae_source), ("transformer", transformer_source)):
        if source.is_file():  # read last, refused first: T5 takes minutes
            find_part(read_header(source), kind)
    cache = TensorCache(model.cache_folder, _CACHE_BYTES)
    encode = encode_prompts(prompts, model.text_source(), cache, text_dtype, device)
    vae: Any = load_vae(vae_source, dtype, device, tiling=model.vae_tiling)
    transformer: Any = load_transformer(
        transformer_source, model.weights, torch.device("cpu") if keep_on_cpu else device
    )
    channels, scale = vae.config.latent_channels, pixels_per_latent(vae)
    if 4 * channels != transformer.config.in_channels:
        raise ValueError(
            f"the VAE has {channels} latent channels, and the transformer takes "
            f"{transformer.config.in_channels // 4}; model.vae and model.transformer do not belong "
            "together"
        )
    speed_up(transformer, model, FluxPolicy.blocks)
    return FluxPolicy(
        name=model.name,
        transformer=transformer,
        encode=encode,
        decode=decoder(vae, KL),
        encode_pictures=encoder(vae, KL),
        latent_shape=(channels, model.height // scale, model.width // scale),
        lora=lora or LoraConfig(),
        seed=seed,
        guidance=model.guidance if transformer.config.guidance_embeds else None,
        device=device if keep_on_cpu else None,
    )
