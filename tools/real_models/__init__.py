"""The example workflows of real models: one graph, and what each model needs of its own."""

from .graph import layout_of, prompt_of
from .models import MODELS, File, Loader, ModelExample

__all__ = ["MODELS", "File", "Loader", "ModelExample", "layout_of", "prompt_of"]
