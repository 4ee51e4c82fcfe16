"""Latent codec of the tiny world: pictures of 64 x 64 x 3 and latents of 16 x 8 x 8.

A light convolutional autoencoder; all heavy work runs at the 8 x 8 resolution of the latents.

Legend: B pictures, H W picture size (multiples of 8), h = H / 8, w = W / 8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LATENT_CHANNELS", "SCALE", "TinyCodec"]

LATENT_CHANNELS = 16
#: Pixels of a picture along one latent pixel.
SCALE = 8
_WIDTH = 64


class _Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), shape kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(x))))


class _TwoColours(nn.Module):
    """Block-wise drawing: two colours for each block of 8 x 8 pixels and a mask that mixes them.

    This is how old texture formats store blocks; it keeps flat areas flat and edges sharp.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(_WIDTH, 2 * _WIDTH, 1)
        self.out = nn.Conv2d(2 * _WIDTH, 6 + SCALE**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 64, h, w) -> pictures (B, 3, H, W), about -1..1."""
        out = self.out(functional.silu(self.hidden(x)))
        first, second = (
            functional.interpolate(colour, scale_factor=SCALE)
            for colour in (out[:, :3], out[:, 3:6])
        )
        mask = torch.sigmoid(4 * functional.pixel_shuffle(out[:, 6:], SCALE))
        return first + mask * (second - first)


class TinyCodec(nn.Module):
    """Autoencoder with latents of zero mean and unit standard deviation in each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, _WIDTH, SCALE, stride=SCALE),
            _Residual(_WIDTH),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, LATENT_CHANNELS, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, _WIDTH, 3, padding=1),
            _Residual(_WIDTH),
            _Residual(_WIDTH),
            nn.SiLU(),
            _TwoColours(),
        )
        self.register_buffer("mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("std", torch.ones(LATENT_CHANNELS))

    def encode_nchw(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 -> normalised latents (B, 16, h, w).

        Raises:
            ValueError: The shape is not (B, 3, H, W) with H and W multiples of 8.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or any(n % SCALE for n in pixels.shape[2:]):
            raise ValueError(
                f"pixels must have shape (B, 3, H, W) with H and W multiples of {SCALE}, "
                f"got {tuple(pixels.shape)}"
            )
        raw = self.encoder(pixels)
        return (raw - self.mean[:, None, None]) / self.std[:, None, None]

    def decode_nchw(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, 16, h, w) -> pictures (B, 3, H, W), about -1..1, not clamped.

        Raises:
            ValueError: The shape is not (B, 16, h, w).
        """
        if latents.ndim != 4 or latents.shape[1] != LATENT_CHANNELS:
            raise ValueError(
                f"latents must have shape (B, {LATENT_CHANNELS}, h, w), got {tuple(latents.shape)}"
            )
        return self.decoder(latents * self.std[:, None, None] + self.mean[:, None, None])

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) in 0..1 -> latents (B, 16, h, w), about zero mean, unit std.

        Raises:
            ValueError: The shape is not (B, H, W, 3) with H and W multiples of 8.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must have shape (B, H, W, 3), got {tuple(images.shape)}")
        return self.encode_nchw(images.movedim(-1, 1) * 2 - 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 16, h, w) -> pictures (B, H, W, 3), clamped to 0..1.

        Raises:
            ValueError: The shape is not (B, 16, h, w).
        """
        return (self.decode_nchw(latents) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
