"""The node of this pack, and the smallest CLIP and VAE that the nodes under test can work with."""

from __future__ import annotations

import zlib

import torch

from .models import ARCHITECTURES, TOKENS, build, conditioning

WEIGHTS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float8_e4m3fn": (torch.float8_e4m3fn, torch.bfloat16),
}


class RandomClip:
    """Every text is another random conditioning."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.cond_stage_model = torch.nn.Module()

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **options):
        seed = zlib.crc32(tokens.encode())
        return conditioning(self.architecture, seed, TOKENS - seed % 3)


class ColourVae:
    """The first three channels of a latent are red, green and blue."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(samples[:, :3].float() / 2).movedim(1, -1)


class TinyArchitecture:
    """-> MODEL, CLIP, VAE of one architecture."""

    CATEGORY = "testing"
    FUNCTION = "make"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"name": (list(ARCHITECTURES),), "weights": (list(WEIGHTS),)}}

    def make(self, name: str, weights: str):
        return build(name, *WEIGHTS[weights]), RandomClip(name), ColourVae()
