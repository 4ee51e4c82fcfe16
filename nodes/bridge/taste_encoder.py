"""ComfyUI's CLIP_VISION (SigLIP, CLIP, DINOv2) as an encoder of pictures.

A picture is squeezed to the square that the model takes, so that all of it is seen; mean and
deviation are the model's. The pooled features are taken, or where a model has none the mean over
its patches. ComfyUI moves the model to the card for each batch and away when it wants.

Legend: B pictures.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...chunk_grpo_core.rewards.pixels import to_levels
from .host import check_interrupt

__all__ = ["ClipVisionEncoder"]

_PIXELS = "comfyui-squeeze-1"
"""How a picture is prepared and what is taken of it; part of the digest."""
_BATCH = 16


class ClipVisionEncoder:
    """Implements ``rewards.taste.features.Encoder``."""

    def __init__(self, clip_vision: Any) -> None:
        """Encode with a CLIP_VISION.

        Args:
            clip_vision: From Load CLIP Vision.
        """
        self._model = clip_vision

    @property
    def name(self) -> str:
        """For people: the class of the model and the width of its embedding."""
        return f"{type(self._model.model).__name__} {self.dims}"

    @property
    def digest(self) -> str:
        """Of the weights in the type that they run in, and of how pictures are prepared."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        model = self._model
        dtype, size = model.dtype, model.image_size
        facts = f"{_PIXELS} {size} {list(model.image_mean)} {list(model.image_std)} {dtype}"
        hashed = hashlib.sha256(facts.encode())
        for name, tensor in sorted(model.model.state_dict().items()):
            check_interrupt()
            hashed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            flat = tensor.detach().to("cpu", copy=False).contiguous().flatten()
            hashed.update(flat.view(torch.uint8).numpy().data)
        return hashed.hexdigest()

    @property
    def dims(self) -> int:
        """How many numbers it makes of a picture; found out on a grey one."""
        return self._dims

    @cached_property
    def _dims(self) -> int:
        return self._embed(torch.full((1, 32, 32, 3), 0.5)).shape[1]

    def embed(self, images: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) in 0..1 -> (B, dims), float32 on the CPU.

        Raises:
            InterruptProcessingException: The user pressed Cancel.
        """
        if not len(images):
            return torch.zeros(0, self.dims)
        rows = []
        for part in images.split(_BATCH):
            check_interrupt()
            rows.append(self._embed(to_levels(part).float() / 255))
        return torch.cat(rows)

    def _embed(self, pictures: Tensor) -> Tensor:
        with torch.inference_mode():  # ComfyUI loads and moves its models in it
            out = self._model.encode_image(pictures, crop=False)
            pooled = out["image_embeds"]
            if pooled is None or pooled.ndim == 3:  # SigLIP pools nothing here
                pooled = (out["last_hidden_state"] if pooled is None else pooled).mean(1)
            numbers = pooled.to("cpu", torch.float32)
        return numbers.clone()  # outside it, for a training
