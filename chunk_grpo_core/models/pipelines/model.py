"""What the table [model] has for a model that is read as diffusers' pipeline of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...settings.declared import Range
from ..diffusers_model import DiffusersModel

__all__ = ["GuidedModel", "PipelineModel"]


@dataclass(frozen=True, kw_only=True)
class PipelineModel(DiffusersModel):
    """A pipeline, whose transformer and VAE may come from other files."""

    transformer: str = ""
    """File instead of the pipeline's transformer: .safetensors (16 bits or fp8) or .gguf."""
    vae: str = ""
    """Folder instead of the pipeline's VAE, or a file where diffusers can read one."""
    guidance: Annotated[float, Range(0, 100)] = 0.0
    """Guidance scale, as the pipeline takes it."""
    max_tokens: Annotated[int, Range(1, 4096)] = 512
    """Text tokens; longer prompts are cut."""


@dataclass(frozen=True, kw_only=True)
class GuidedModel(PipelineModel):
    """A model whose guidance compares the prompt with a negative prompt: two calls for one."""

    negative_prompt: str = ""
    """Prompt that guidance moves away from; it is read only where guidance is on."""
