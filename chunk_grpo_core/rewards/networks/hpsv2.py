"""HPSv2: CLIP-H taught with 800 thousand choices between two pictures.

Pictures keep their shape: they are scaled into the square, with black margins. Scores of 2.0 and
2.1 are not comparable, and scores of different prompts hardly.

References:
    Human Preference Score v2: A Solid Benchmark for Evaluating Human Preferences of Text-to-Image
    Synthesis (Wu et al., 2023), arXiv 2306.09341.
"""

from __future__ import annotations

from typing import Literal

from ...settings.declared import shortened
from ..files import WeightFile
from ..pixels import letterboxed
from .clip import CLIP_H, CosineReward, load_cosine_reward
from .network import LoadOptions
from .tokens import web_text

__all__ = ["WEIGHTS", "load_hpsv2"]

WEIGHTS: dict[str, WeightFile] = {
    "2.1": WeightFile(
        folder="hpsv2",
        name="HPS_v2.1_compressed.pt",
        repo="xswu/HPSv2",
        bytes=1_970_000_000,
        licence="Apache-2.0",
    ),
    "2.0": WeightFile(
        folder="hpsv2",
        name="HPS_v2_compressed.pt",
        repo="xswu/HPSv2",
        bytes=1_970_000_000,
        licence="Apache-2.0",
    ),
}
"""The whole checkpoint ``HPS_v2.pt`` (8 GB) holds more than tensors and is refused."""


def load_hpsv2(
    options: LoadOptions, *, version: Literal["2.1", "2.0"] = "2.1", scale: float = 1.0
) -> CosineReward:
    """Load HPSv2: ``scale`` times a cosine of about 0.2 to 0.35.

    Args:
        options: Where the files are and how the network runs.
        version: Of the weights.
        scale: 1 gives what the authors' code returns, 100 what their tables show.

    Raises:
        FileNotFoundError: Weights or tokenizer are not on this machine.
        ValueError: ``version`` is unknown, ``scale`` is not above 0, or the file is that of another
            model.
    """
    if version not in WEIGHTS:
        raise ValueError(f"version is {shortened(version)}; it must be one of {', '.join(WEIGHTS)}")
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be above 0")
    return load_cosine_reward(
        options,
        WEIGHTS[version],
        CLIP_H,
        square=letterboxed,
        pixels="letterbox-1",
        value=lambda tensors: lambda cosine: scale * cosine,
        clean=web_text,
        facts={"version": version, "scale": scale},
    )
