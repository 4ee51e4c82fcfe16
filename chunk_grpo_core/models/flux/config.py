"""Where a FLUX.1 is on this machine: what a user names, and the files that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...settings.declared import Range
from ..diffusers_model import DiffusersModel
from .text import TextSource

__all__ = ["FluxModel"]

_TEXT_FOLDERS = {
    "clip": "text_encoder",
    "t5": "text_encoder_2",
    "clip_tokenizer": "tokenizer",
    "t5_tokenizer": "tokenizer_2",
}


@dataclass(frozen=True, kw_only=True)
class FluxModel(DiffusersModel):
    """A FLUX.1 model: a pipeline, single files, or a pipeline with some parts from files."""

    paths = DiffusersModel.paths | _TEXT_FOLDERS.keys()
    """See :class:`~..family.ModelTable`."""
    folders = {**DiffusersModel.folders, **_TEXT_FOLDERS}
    """See :class:`~..diffusers_model.DiffusersModel`."""

    path: str = ""
    """Folder of a diffusers pipeline (with model_index.json), or the name of one in the Hugging
    Face cache, such as black-forest-labs/FLUX.1-dev. Nothing is downloaded."""
    transformer: str = ""
    """File instead of the pipeline's transformer: .safetensors (16 bits or fp8) or .gguf."""
    vae: str = ""
    """File instead of the pipeline's VAE, such as ae.safetensors."""
    clip: str = ""
    """File instead of the pipeline's CLIP-L, such as clip_l.safetensors."""
    t5: str = ""
    """File instead of the pipeline's T5, such as t5xxl_fp16.safetensors."""
    clip_tokenizer: str = ""
    """Folder instead of the pipeline's tokenizer, such as ComfyUI's comfy/sd1_tokenizer."""
    t5_tokenizer: str = ""
    """Folder instead of the pipeline's tokenizer_2, such as ComfyUI's
    comfy/text_encoders/t5_tokenizer."""
    guidance: Annotated[float, Range(0, 100)] = 3.5
    """Distilled guidance; FLUX.1-schnell has none and takes no notice."""
    max_tokens: Annotated[int, Range(1, 4096)] = 512
    """Text tokens for T5: 512 for dev, 256 for schnell."""

    def text_source(self) -> TextSource:
        """Where the encoders and tokenizers are."""
        return TextSource(
            clip=self.part("clip"),
            t5=self.part("t5"),
            clip_tokenizer=self.part("clip_tokenizer"),
            t5_tokenizer=self.part("t5_tokenizer"),
            max_tokens=self.max_tokens,
        )
