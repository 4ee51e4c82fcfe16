"""What the table [model] has for a model that is read as diffusers' pipeline of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ...settings.declared import Range
from ..diffusers_model import DiffusersModel

__all__ = ["GuidedModel", "PipelineModel"]


@dataclass(frozen=True, kw_only=True)
class PipelineModel(DiffusersModel):
    """A pipeline, whose transformer and VAE may come from other files."""

    transformer: str = ""
    """File (.safetensors) instead of the pipeline's transformer."""
    vae: str = ""
    """Folder instead of the pipeline's VAE, or a file where diffusers can read one."""
    guidance: Annotated[float, Range(0, 100)] = 0.0
    """Guidance scale, as the pipeline takes it."""
    max_tokens: Annotated[int, Range(1, 4096)] = 512
    """Text tokens; longer prompts are cut."""

    def settings_of(self, part: str) -> dict[str, Any] | None:
        """A part's settings (config.json, or model_index.json for the part ""), as in its folder.

        Returns:
            None if the pipeline is not on this machine; loading the model says so.

        Raises:
            ValueError: The file is damaged.
        """
        try:
            folder = self.pipeline_folder()
        except (FileNotFoundError, ValueError):
            return None
        names = {"": "model_index.json", "scheduler": "scheduler_config.json"}
        file = folder / part / names.get(part, "config.json")
        return _read(file) if file.is_file() else None


@dataclass(frozen=True, kw_only=True)
class GuidedModel(PipelineModel):
    """A model whose guidance compares the prompt with a negative prompt: two calls for one."""

    negative_prompt: str = ""
    """Prompt that guidance moves away from; it is read only where guidance is on."""


def _read(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model.path: {file} is damaged ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"model.path: {file} is damaged (it is no table)")
    return settings
