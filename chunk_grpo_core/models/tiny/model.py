"""The tiny FLUX: configuration, asset file, loading, fresh weights.

The asset is one safetensors file with the keys ``transformer.*``, ``text.*`` and ``codec.*``,
stored as bf16 (the codec's two constants as float32) and computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...method.schedule import shifted_grid
from ...method.walk import walk_to_end
from ...optional import require
from ..flux.policy import predict_velocity
from .codec import LATENT_CHANNELS, SCALE, TinyCodec
from .render import IMAGE_SIZE
from .text import POOLED_DIM, TEXT_DIM, TinyTextEncoder

__all__ = [
    "ASSET",
    "LATENT_SHAPE",
    "SHIFT",
    "TRANSFORMER_CONFIG",
    "TinyFlux",
    "initialise",
    "load_tiny_flux",
    "sample_images",
    "sample_latents",
    "save_tiny_flux",
]

#: The trained model that comes with the package.
ASSET = Path(__file__).with_name("tiny_flux.safetensors")
SHIFT = 3.0
"""Static time shift of training and sampling."""
LATENT_SHAPE = (LATENT_CHANNELS, IMAGE_SIZE // SCALE, IMAGE_SIZE // SCALE)
#: Arguments of diffusers' FluxTransformer2DModel. FLUX.1 with smaller numbers.
TRANSFORMER_CONFIG: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4 * LATENT_CHANNELS,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 5,
    "joint_attention_dim": TEXT_DIM,
    "pooled_projection_dim": POOLED_DIM,
    "guidance_embeds": False,
    "axes_dims_rope": (8, 12, 12),
}
_VERSION = "1"


@dataclass(frozen=True)
class TinyFlux:
    """The three parts of the model."""

    transformer: nn.Module
    """A FluxTransformer2DModel; velocity on packed latents, see :mod:`.policy`."""
    text: TinyTextEncoder
    codec: TinyCodec

    def parts(self) -> dict[str, nn.Module]:
        """Key prefix in the asset -> module."""
        return {"transformer": self.transformer, "text": self.text, "codec": self.codec}


def _empty() -> TinyFlux:
    diffusers = require("diffusers", "To build the tiny FLUX")
    transformer = diffusers.FluxTransformer2DModel(**TRANSFORMER_CONFIG)
    return TinyFlux(transformer, TinyTextEncoder(), TinyCodec())


def _freeze(flux: TinyFlux) -> TinyFlux:
    for module in flux.parts().values():
        module.train(False).requires_grad_(False)
    return flux


def initialise(seed: int) -> TinyFlux:
    """An untrained model in training mode; the same seed gives the same weights.

    All modulations and the output layer start at zero, so every block starts as the identity.

    Raises:
        ImportError: diffusers is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flux = _empty()
    for name, parameter in flux.transformer.named_parameters():
        if ("norm" in name and "linear" in name) or name.startswith("proj_out"):
            nn.init.zeros_(parameter)
    for module in flux.parts().values():
        module.train()
    return flux


def save_tiny_flux(flux: TinyFlux, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the asset file, weights rounded to bf16.

    Args:
        flux: What to write.
        path: File to write; its folder must exist.
        metadata: Facts to keep in the header; the format version is added.

    Raises:
        ImportError: safetensors is not installed.
    """
    files = require("safetensors.torch", "To write the tiny FLUX")
    tensors: dict[str, Tensor] = {}
    for prefix, module in flux.parts().items():
        constants = {name for name, _ in module.named_buffers()}
        for name, tensor in module.state_dict().items():
            dtype = torch.float32 if name in constants else torch.bfloat16
            tensors[f"{prefix}.{name}"] = tensor.detach().to("cpu", dtype).contiguous()
    files.save_file(tensors, str(path), metadata={"version": _VERSION, **metadata})


def load_tiny_flux(path: Path = ASSET) -> TinyFlux:
    """Load the model: eval mode, no gradients, float32 on the CPU.

    Args:
        path: Asset file, by default the one of the package.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged or belongs to another configuration.
        ImportError: diffusers or safetensors is not installed.
    """
    files = require("safetensors.torch", "To read the tiny FLUX")
    if not path.is_file():
        raise FileNotFoundError(
            f"the tiny FLUX is missing: {path}. Reinstall the package, or make it with "
            "'python -m chunk_grpo_core.models.tiny.pretrain --out DIR'"
        )
    flux = _empty()
    try:
        tensors = files.load_file(str(path))
        for prefix, module in flux.parts().items():
            start = f"{prefix}."
            weights = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            module.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except Exception as error:  # safetensors and torch raise their own kinds
        raise ValueError(f"{path} is not a readable tiny FLUX file: {error}") from error
    return _freeze(flux)


@torch.no_grad()
def sample_latents(
    flux: TinyFlux, noise: Tensor, captions: Sequence[str], steps: int = 9
) -> Tensor:
    """Follow the ODE from noise to data with Euler steps, each sample with a caption of its own.

    Args:
        flux: The model.
        noise: Standard normal, (B, C, h, w), on the model's device.
        captions: B captions of the tiny world, or empty texts.
        steps: Euler steps, 2 or more.

    Returns:
        Latents (B, C, h, w).

    Raises:
        ValueError: A caption has an unknown word.
    """
    features, pooled = flux.text.encode(captions)

    def velocity(x_t: Tensor, t: float) -> Tensor:
        times = torch.full((len(x_t),), t, device=x_t.device)
        return predict_velocity(flux.transformer, x_t, times, features, pooled)

    return walk_to_end(velocity, noise, shifted_grid(steps, SHIFT).pairs())


@torch.no_grad()
def sample_images(flux: TinyFlux, captions: Sequence[str], seed: int, steps: int = 9) -> Tensor:
    """Draw one picture for each caption with the ODE sampler.

    Args:
        flux: The model.
        captions: B captions of the tiny world, or empty texts.
        seed: Seed of the noise.
        steps: Euler steps, 2 or more.

    Returns:
        Pictures in 0..1, float32, shape (B, 64, 64, 3).

    Raises:
        ValueError: A caption has an unknown word.
    """
    noise = torch.randn(len(captions), *LATENT_SHAPE, generator=torch.Generator().manual_seed(seed))
    return flux.codec.decode(sample_latents(flux, noise, captions, steps))
