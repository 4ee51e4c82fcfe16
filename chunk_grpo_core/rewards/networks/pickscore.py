"""PickScore: CLIP-H taught with half a million choices between two pictures.

References:
    Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation (Kirstain et al.,
    2023), arXiv 2305.01569, eq. 1: s(x, y) = T * cosine, T a learned temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..files import WeightFile
from ..pixels import cropped
from .clip import CLIP_H, CosineReward, load_cosine_reward
from .network import LoadOptions

__all__ = ["WEIGHTS", "load_pickscore"]

WEIGHTS = WeightFile(
    folder="pickscore",
    name="model.safetensors",
    repo="yuvalkirstain/PickScore_v1",
    bytes=3_940_000_000,
    licence="none stated for the weights (code: MIT)",
)


def _temperature(tensors: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    temperature = float(tensors["logit_scale"].double().exp())
    return lambda cosine: temperature * cosine


def load_pickscore(options: LoadOptions) -> CosineReward:
    """Load PickScore: about 18 to 24.

    Raises:
        FileNotFoundError: Weights or tokenizer are not on this machine.
        ValueError: The file is that of another model.
    """
    return load_cosine_reward(
        options,
        WEIGHTS,
        CLIP_H,
        square=cropped("floor"),
        pixels="crop-floor-1",
        value=_temperature,
        facts={},
    )
