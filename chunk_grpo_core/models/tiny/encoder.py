"""A picture encoder for the tiny world: 64 numbers that say what a picture shows.

A small convolutional network, trained to name the five attributes of a scene in clean and in faulty
pictures (``pretrain_encoder.py``). What it says last but one is the embedding. It comes with the
package, so that everything that takes an encoder runs without a file of the user.

Legend: B pictures, D = 64 numbers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...optional import require
from .render import IMAGE_SIZE
from .world import ATTRIBUTES

__all__ = ["DIMS", "ENCODER_ASSET", "TinyEncoder", "TinyEncoderNetwork", "load_tiny_encoder"]

ENCODER_ASSET = Path(__file__).with_name("tiny_encoder.safetensors")
"""The trained network that comes with the package, float16."""
DIMS = 64
_PIXELS = "squeeze-bilinear-64-1"
"""How a picture is prepared; part of the digest."""


class TinyEncoderNetwork(nn.Module):
    """Four convolutions, their mean and largest values, and a layer that mixes them."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        self.layers = nn.ModuleList(
            nn.Conv2d(
                before, after, 5 if before == 3 else 3, stride=2, padding=2 if before == 3 else 1
            )
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.mix = nn.Linear(2 * widths[-1], DIMS)
        self.heads = nn.ModuleList(nn.Linear(DIMS, len(values)) for values in ATTRIBUTES.values())

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, 64, 64) in 0..1 -> (B, D)."""
        x = pixels * 2 - 1
        for layer in self.layers:
            x = functional.silu(layer(x))
        return torch.tanh(self.mix(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)))

    def attributes(self, pixels: Tensor) -> list[Tensor]:
        """Logits (B, values) of each of the five attributes."""
        numbers = self(pixels)
        return [head(numbers) for head in self.heads]


class TinyEncoder:
    """Implements ``rewards.taste.features.Encoder``, on the CPU."""

    name = "tiny"
    dims = DIMS

    def __init__(self, network: TinyEncoderNetwork) -> None:
        """Encode with a network; float32, on the CPU."""
        self.network = network

    @property
    def digest(self) -> str:
        """Of the weights and of how pictures are prepared."""
        hashed = hashlib.sha256(_PIXELS.encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            hashed.update(f"{name} {tuple(tensor.shape)} ".encode())
            hashed.update(tensor.contiguous().numpy().tobytes())
        return hashed.hexdigest()

    def embed(self, images: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) in 0..1 -> (B, D), float32."""
        rows = [self._embed(part) for part in images.split(1)]  # alike in any company, to the bit
        return torch.cat(rows) if rows else torch.zeros(0, DIMS)

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        pixels = images.detach().cpu().float().movedim(-1, 1)
        size = (IMAGE_SIZE, IMAGE_SIZE)
        if pixels.shape[2:] != size:
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        return self.network(pixels.clamp(0, 1))


def load_tiny_encoder(path: Path = ENCODER_ASSET) -> TinyEncoder:
    """Load the encoder that comes with the package.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged.
        ImportError: safetensors is not installed.
    """
    files = require("safetensors.torch", "To read the encoder of the tiny world")
    if not path.is_file():
        raise FileNotFoundError(f"the encoder of the tiny world is missing: {path}. Install again")
    network = TinyEncoderNetwork()
    try:
        weights = {name: tensor.float() for name, tensor in files.load_file(str(path)).items()}
        network.load_state_dict(weights)
    except Exception as error:  # safetensors and torch raise their own kinds
        raise ValueError(f"{path} is no readable encoder: {error}") from error
    return TinyEncoder(network.train(False).requires_grad_(False))
