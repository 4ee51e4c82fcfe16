"""CLIPScore: cosine between picture and prompt under plain CLIP.

References:
    CLIPScore: A Reference-free Evaluation Metric for Image Captioning (Hessel et al., 2021),
    arXiv 2104.08718, eq. 1: w * max(cos, 0) with w = 2.5. The paper puts "A photo depicts" before
    every caption; here the prompt stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from ...settings.declared import shortened
from ..files import WeightFile
from ..pixels import cropped
from .clip import CLIP_H, CLIP_L, CosineReward, load_cosine_reward
from .network import LoadOptions

__all__ = ["CONVENTIONS", "WEIGHTS", "load_clipscore"]

Convention = Literal["cosine", "percent", "paper"]

CONVENTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda cosine: cosine,
    "percent": lambda cosine: 100.0 * cosine,
    "paper": lambda cosine: 2.5 * cosine.clamp(min=0.0),
}
"""Three scales in use: the plain cosine, a hundred times that (torchmetrics, which also cuts
negative values off; here they stay), and eq. 1 of the paper."""

WEIGHTS: dict[str, WeightFile] = {
    "clip-l": WeightFile(
        folder="clipscore",
        name="model.safetensors",
        repo="openai/clip-vit-large-patch14",
        bytes=1_710_000_000,
        licence="none stated for the weights (code: MIT); the card advises against deployment",
    ),
    "clip-h": WeightFile(
        folder="clipscore_h",
        name="model.safetensors",
        repo="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        bytes=3_940_000_000,
        licence="MIT",
    ),
}
_SHAPES = {"clip-l": CLIP_L, "clip-h": CLIP_H}


def load_clipscore(
    options: LoadOptions,
    *,
    model: Literal["clip-l", "clip-h"] = "clip-l",
    convention: Convention = "cosine",
) -> CosineReward:
    """Load CLIPScore.

    Args:
        options: Where the files are and how the network runs.
        model: ViT-L/14 of OpenAI or ViT-H/14 of LAION.
        convention: One of :data:`CONVENTIONS`. ``"cosine"`` is about 0.15 to 0.35 for ViT-L.

    Raises:
        FileNotFoundError: Weights or tokenizer are not on this machine.
        ValueError: ``model`` or ``convention`` is unknown, or the file is that of another model.
    """
    if model not in WEIGHTS:
        raise ValueError(f"model is {shortened(model)}; it must be one of {', '.join(WEIGHTS)}")
    if convention not in CONVENTIONS:
        allowed = ", ".join(CONVENTIONS)
        raise ValueError(f"convention is {shortened(convention)}; it must be one of {allowed}")
    rule = "round" if model == "clip-l" else "floor"
    return load_cosine_reward(
        options,
        WEIGHTS[model],
        _SHAPES[model],
        square=cropped(rule),
        pixels=f"crop-{rule}-1",
        value=lambda tensors: CONVENTIONS[convention],
        facts={"model": model, "convention": convention},
    )
