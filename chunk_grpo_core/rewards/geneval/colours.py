"""Names of colours by CLIP: each object, cut out on grey, against "a photo of a red chair".

The words and the cut are GenEval's. Not tried with real weights.

Legend: H W picture size, n objects, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...method.reward import Fingerprint
from ..networks.clip import image_features, text_features
from ..networks.network import PromptCache
from ..networks.tokens import Tokens
from ..pixels import cropped
from .rules import Detection
from .task import COLOURS

__all__ = ["ClipColours", "cut_out"]

_TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
_GREY = 0x99


class ClipColours:
    """Implements :class:`~chunk_grpo_core.rewards.geneval.reward.ColourReader`."""

    def __init__(self, network: Any, tokens: Tokens, facts: Fingerprint) -> None:
        """Judge with CLIP; GenEval takes ViT-L/14 of OpenAI.

        Args:
            network: From :func:`~chunk_grpo_core.rewards.networks.clip.clip_network`.
            tokens: Its tokenizer.
            facts: Digest of the weights.
        """
        self.network = network
        self._facts = {**facts, "pixels": "crop-round-1"}
        self._texts = PromptCache(lambda texts: text_features(network, tokens(texts)[0]).cpu())

    @property
    def fingerprint(self) -> Fingerprint:
        """Weights, tokenizer, preprocessing, dtype."""
        return {**self._facts, "dtype": str(next(self.network.parameters()).dtype)}

    def __call__(self, levels: Tensor, objects: Sequence[Detection]) -> list[str]:
        """Picture (H, W, 3), uint8, and n objects in it -> n names out of ``COLOURS``."""
        names = []
        for detection in objects:
            cut = cut_out(levels, detection)[None]
            picture = image_features(self.network, cut, cropped("round"))
            likeness = self._classes(detection.label) @ picture[0].cpu()  # (10,)
            names.append(COLOURS[int(likeness.argmax())])
        return names

    def _classes(self, label: str) -> Tensor:
        """Normalised mean feature of each colour's texts, (10, D)."""
        texts = [template.format(c, label) for c in COLOURS for template in _TEMPLATES]
        features = self._texts(texts).view(len(COLOURS), len(_TEMPLATES), -1)
        return functional.normalize(features.mean(1), dim=-1)


def cut_out(levels: Tensor, detection: Detection) -> Tensor:
    """Cut an object's box out of a picture (H, W, 3), uint8, with grey where it is not."""
    height, width = levels.shape[:2]
    left, top, right, bottom = (round(edge) for edge in detection.box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    rows, columns = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
    if detection.mask is None:
        return levels[rows, columns]
    grey = torch.full_like(levels, _GREY)
    return torch.where(detection.mask[..., None], levels, grey)[rows, columns]
