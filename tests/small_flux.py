"""A FLUX on diffusers with random weights, small enough to train and to load files into."""

from __future__ import annotations

import torch

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.models.flux.policy import FluxPolicy

LORA = LoraConfig(rank=4, alpha=6.0)
SHAPE = (4, 4, 4)


def small_flux():
    """The same FLUX at every call: hidden size 64, one block of each kind, random weights."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            axes_dims_rope=(8, 12, 12),
        ).eval()


def encode(caption):
    generator = torch.Generator().manual_seed(len(caption))
    return torch.randn(1, 3, 24, generator=generator), torch.randn(1, 16, generator=generator)


def small_policy(transformer=None, lora=LORA, encode=encode):
    return FluxPolicy(
        name="small",
        transformer=transformer or small_flux(),
        encode=encode,
        decode=lambda x_0: torch.sigmoid(x_0[:, :3]).permute(0, 2, 3, 1),
        latent_shape=SHAPE,
        lora=lora,
    )


def shaken(adapter):
    """Move every weight, as training would."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter


@torch.no_grad()
def velocity_of(policy, x_t=None):
    x_t = latents() if x_t is None else x_t
    return policy.run(lambda velocity: velocity(x_t, 0.7, "a fox"))


def latents(count=4):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def base_velocity():
    from chunk_grpo_core.models.flux.policy import predict_velocity

    features, pooled = (part.expand(4, *part.shape[1:]) for part in encode("a fox"))
    frozen = small_flux().requires_grad_(False)  # torch picks other kernels for trainable weights
    return predict_velocity(frozen, latents(), torch.full((4,), 0.7), features, pooled)
