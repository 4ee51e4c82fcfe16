"""The example workflows of real models: one graph, and what each model needs of its own."""

from .graph import layout_of, prompt_of
from .models import MODELS, TASTE, File, Loader, ModelExample
from .taste import taste_layout_of, taste_prompt_of

__all__ = [
    "EXAMPLES",
    "MODELS",
    "File",
    "Loader",
    "ModelExample",
]

EXAMPLES = {
    **{model.name: (model, prompt_of(model), layout_of(model)) for model in MODELS},
    TASTE.name: (TASTE, taste_prompt_of(TASTE), taste_layout_of(TASTE)),
}
"""Name -> model, API-format prompt, layout."""
