"""From latents that a transformer steps to pictures and back, for each kind of VAE.

Legend: B pictures, C channels, h w size of latents, H W size of pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .form import packed, unpacked

__all__ = ["FLUX2", "KL", "QWEN", "QWEN_RGBA", "Scaling", "decoder", "encoder"]

Convert = Callable[[Any, Tensor], Tensor]
"""VAE and a tensor -> a tensor."""


@dataclass(frozen=True)
class Scaling:
    """How one kind of VAE scales its latents, and the axes it wants."""

    to_vae: Convert
    """Latents (B, C, h, w) -> what ``vae.decode`` takes."""
    from_vae: Convert
    """What ``vae.encode`` gives -> latents (B, C, h, w)."""
    to_picture: Callable[[Tensor], Tensor] = lambda decoded: decoded
    """What ``vae.decode`` gives -> (B, 3, H, W) in -1..1."""
    from_picture: Callable[[Tensor], Tensor] = lambda picture: picture
    """(B, 3, H, W) in -1..1 -> what ``vae.encode`` takes."""


def decoder(vae: Any, scaling: Scaling) -> Callable[[Tensor], Tensor]:
    """Make the function that turns latents (B, C, h, w) into pictures (B, H, W, 3) in 0..1.

    One picture at a time, so that memory does not grow with B.
    """

    def decode(latents: Tensor) -> Tensor:
        pictures = []
        for latent in latents:
            scaled = scaling.to_vae(vae, latent[None]).to(vae.dtype)
            pictures.append(scaling.to_picture(vae.decode(scaled, return_dict=False)[0].float()))
        return (torch.cat(pictures).permute(0, 2, 3, 1) + 1.0) / 2.0

    return decode


def encoder(vae: Any, scaling: Scaling) -> Callable[[Tensor], Tensor]:
    """Make the function that turns pictures (B, H, W, 3) in 0..1 into latents (B, C, h, w).

    One picture at a time; the most probable latent, without noise.
    """

    def encode(images: Tensor) -> Tensor:
        latents = []
        for image in images.permute(0, 3, 1, 2) * 2.0 - 1.0:
            given = scaling.from_picture(image[None]).to(vae.dtype)
            latents.append(
                scaling.from_vae(vae, vae.encode(given, return_dict=False)[0].mode().float())
            )
        return torch.cat(latents)

    return encode


def _shift(vae: Any) -> float:
    return vae.config.shift_factor or 0.0


KL = Scaling(
    to_vae=lambda vae, x: x / vae.config.scaling_factor + _shift(vae),
    from_vae=lambda vae, z: (z - _shift(vae)) * vae.config.scaling_factor,
)
"""AutoencoderKL: a scale and a shift."""


def _batch_norm(vae: Any) -> tuple[Tensor, Tensor]:
    std = torch.sqrt(vae.bn.running_var.float() + vae.config.batch_norm_eps)
    return vae.bn.running_mean.float(), std


def _flux2_to_vae(vae: Any, x: Tensor) -> Tensor:
    mean, std = _batch_norm(vae)
    return unpacked(packed(x) * std + mean, x.shape[2] // 2)


def _flux2_from_vae(vae: Any, z: Tensor) -> Tensor:
    mean, std = _batch_norm(vae)
    return unpacked((packed(z) - mean) / std, z.shape[2] // 2)


FLUX2 = Scaling(to_vae=_flux2_to_vae, from_vae=_flux2_from_vae)
"""AutoencoderKLFlux2: mean and deviation of each channel of 2 x 2 patches."""


def _channels(vae: Any, name: str, like: Tensor) -> Tensor:
    return torch.tensor(vae.config[name], device=like.device).view(1, -1, 1, 1)


def _qwen_to_vae(vae: Any, x: Tensor) -> Tensor:
    std, mean = (_channels(vae, name, x) for name in ("latents_std", "latents_mean"))
    return (x * std + mean).unsqueeze(2)


def _qwen_from_vae(vae: Any, z: Tensor) -> Tensor:
    z = z[:, :, 0]
    return (z - _channels(vae, "latents_mean", z)) / _channels(vae, "latents_std", z)


QWEN = Scaling(
    to_vae=_qwen_to_vae,
    from_vae=_qwen_from_vae,
    to_picture=lambda decoded: decoded[:, :, 0],
    from_picture=lambda picture: picture.unsqueeze(2),
)
"""AutoencoderKLQwenImage: mean and deviation of each channel, and an axis for frames."""


def _over_white(rgba: Tensor) -> Tensor:
    colour, alpha = ((rgba + 1.0) / 2.0).clamp(0.0, 1.0).split([3, 1], dim=1)
    return 2.0 * (colour * alpha + 1.0 - alpha) - 1.0


QWEN_RGBA = Scaling(
    to_vae=_qwen_to_vae,
    from_vae=_qwen_from_vae,
    to_picture=lambda decoded: _over_white(decoded[:, :, 0]),
    from_picture=lambda picture: torch.cat(
        [picture, torch.ones_like(picture[:, :1])], dim=1
    ).unsqueeze(2),
)
"""AutoencoderKLQwenImage21: like :data:`QWEN` with transparency, which is shown over white."""
