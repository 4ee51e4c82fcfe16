"""The nodes of this pack, and the smallest CLIP and VAE that the nodes under test can work with."""

from __future__ import annotations

import json
import math
import zlib

import torch

from .models import ALL, TOKENS, build, conditioning, is_there
from .state import snapshot

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

    def __init__(self, architecture: str) -> None:
        self.latent = ALL[architecture].latent

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        latents = torch.zeros(len(pixels), *self.latent)
        colours = 2 * pixels[..., :3].float().clamp(0.01, 0.99).logit().movedim(-1, 1)
        latents[:, :3] = colours.view(len(pixels), 3, *self.latent[1:])
        return latents

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(samples[:, :3].float() / 2).movedim(1, -1)


class TinyArchitecture:
    """-> MODEL, CLIP, VAE of one architecture."""

    CATEGORY = "testing"
    FUNCTION = "make"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"name": (list(filter(is_there, ALL)),), "weights": (list(WEIGHTS),)}}

    def make(self, name: str, weights: str):
        return build(name, *WEIGHTS[weights]), RandomClip(name), ColourVae(name)


class ModelState:
    """Show all that must be the same about a MODEL after it was borrowed for training."""

    CATEGORY = "testing"
    FUNCTION = "show"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"model": ("MODEL",), "load": ("BOOLEAN",)}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802 - ComfyUI's name
        return math.nan  # look again every time

    def show(self, model, load: bool):
        import comfy.model_management as memory

        if load:
            memory.load_models_gpu([model])
        return {"ui": {"text": [json.dumps(snapshot(model), default=str)]}, "result": ()}


class StoppingModel:
    """-> MODEL that is stopped inside a forward pass with autograd, the third one."""

    CATEGORY = "testing"
    FUNCTION = "make"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"model": ("MODEL",), "how": (["error", "cancel"],)}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802 - ComfyUI's name
        return math.nan  # count from 0 every time

    def make(self, model, how: str):
        import comfy.model_management as memory

        calls = []

        def stopping(apply_model, arguments):
            calls.extend([how] if torch.is_grad_enabled() else [])
            if len(calls) == 3 and how == "error":
                raise ArithmeticError("stopped on purpose")
            if len(calls) == 3:
                memory.interrupt_current_processing()
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(stopping)
        return (model,)
