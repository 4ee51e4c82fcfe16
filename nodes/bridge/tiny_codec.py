"""The tiny FLUX's latent codec as ComfyUI's VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management as memory
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...chunk_grpo_core.models.tiny.codec import LATENT_CHANNELS, TinyCodec

__all__ = ["tiny_vae"]


class _Autoencoder(nn.Module):
    """What comfy.sd.VAE asks of an autoencoder: pictures (B, 3, H, W) in -1..1."""

    def __init__(self, codec: TinyCodec) -> None:
        super().__init__()
        self.codec = codec

    def encode(self, pixels: Tensor) -> Tensor:
        return self.codec.encode_nchw(pixels)

    def decode(self, latents: Tensor, **options: Any) -> Tensor:
        return self.codec.decode_nchw(latents)


def tiny_vae(weights: Mapping[str, Tensor]) -> comfy.sd.VAE:
    """Build the VAE from the state dict of TinyCodec.

    comfy.sd.VAE knows only its own architectures. The smallest one is built the official way, which
    fills every attribute that this ComfyUI version wants; then the autoencoder is exchanged.
    """
    sizes = {"z_channels": LATENT_CHANNELS, "resolution": 64, "ch": 32, "ch_mult": [1]}
    network = {"double_z": True, "in_channels": 3, "out_ch": 3, "num_res_blocks": 1}
    params = {
        "ddconfig": {**sizes, **network, "attn_resolutions": [], "dropout": 0.0},
        "embed_dim": LATENT_CHANNELS,
    }
    stand_in = AutoencoderKL(**params).state_dict()
    vae = comfy.sd.VAE(sd=stand_in, config={"params": params}, dtype=torch.float32)
    codec = TinyCodec()
    codec.load_state_dict(weights)
    vae.first_stage_model = _Autoencoder(codec).train(False).requires_grad_(False)
    vae.patcher = ModelPatcher(
        vae.first_stage_model,
        load_device=vae.device,
        offload_device=memory.vae_offload_device(),
    )
    vae.latent_channels = LATENT_CHANNELS
    vae.size = None
    vae.model_size()
    return vae
