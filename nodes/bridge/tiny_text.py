"""The tiny FLUX's text encoder as ComfyUI's CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management as memory
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...chunk_grpo_core.models.tiny.text import TinyTextEncoder, tokenize

__all__ = ["tiny_clip"]


class _Tokenizer:
    """What comfy.sd.CLIP asks of a tokenizer. Words have no weights here."""

    def __init__(self, **options: Any) -> None:
        """Take what ComfyUI hands to every tokenizer; nothing of it applies."""

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs: Any
    ) -> dict[str, list[list[tuple[Any, ...]]]]:
        """Token rows of one text; an unknown word raises ValueError with the known ones."""
        rest = (1.0, 0) if return_word_ids else (1.0,)
        return {"tiny": [[(token, *rest) for token in row] for row in tokenize([text]).tolist()]}

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to save: the vocabulary is code."""
        return {}


class _TextModel(nn.Module):
    """What comfy.sd.CLIP asks of a text model."""

    disable_offload = True  # asks newer ComfyUI for an ordinary patcher instead of a dynamic one

    def __init__(
        self,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,  # ComfyUI proposes fp16; this small, fp32 costs nothing
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = TinyTextEncoder().to(device).requires_grad_(False)
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: Mapping[str, Any]) -> None:
        """No options apply (layer choice, projection)."""

    def reset_clip_options(self) -> None:
        """No options apply."""

    def encode_token_weights(
        self, tokens: Mapping[str, list[list[tuple[Any, ...]]]]
    ) -> tuple[Tensor, Tensor]:
        """cross_attn (1, L, 96) and pooled_output (1, 64)."""
        rows = [[token for token, *_ in row] for row in tokens["tiny"]]
        features, pooled = self.encoder(torch.tensor(rows, device=self.encoder.positions.device))
        device = memory.intermediate_device()
        return features.to(device), pooled.to(device)

    def load_sd(self, weights: Mapping[str, Tensor]) -> Any:
        """Load the text encoder's weights."""
        return self.encoder.load_state_dict(weights)


def tiny_clip(weights: Mapping[str, Tensor]) -> comfy.sd.CLIP:
    """Build the CLIP from the state dict of TinyTextEncoder."""
    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(_Tokenizer, _TextModel))
    clip.load_sd(weights)
    return clip
