"""Objects by Mask2Former (Swin-S, COCO instances) on transformers.

GenEval runs the same architecture on mmdet, with other weights and its own resizing, so figures of
the two cannot be compared closely. Not tried with real weights: tests run a tiny random network.

Legend: H W picture size, Q queries, K classes, h w size of the masks.

References:
    Masked-attention Mask Transformer for Universal Image Segmentation (Cheng et al., 2021), arXiv
    2112.01527, section 4.1: an instance is as sure as its class, times the mean probability of the
    pixels in its mask.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...method.reward import Fingerprint
from ...optional import require
from ..files import WeightFile, digest
from ..networks.network import judging
from ..pixels import normalised
from .rules import CONFIDENCE, Detection

__all__ = ["CONFIG", "WEIGHTS", "Mask2Former", "instances", "load_mask2former"]

_REPO = "facebook/mask2former-swin-small-coco-instance"
_LICENCE = "other (code: MIT); see the page"
WEIGHTS = WeightFile(
    folder="geneval", name="model.safetensors", repo=_REPO, bytes=276_000_000, licence=_LICENCE
)
CONFIG = WeightFile(
    folder="geneval", name="config.json", repo=_REPO, bytes=79_800, licence=_LICENCE
)

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHORT, _LONG, _MULTIPLE = 800, 1333, 32
# The three classes that GenEval names otherwise than COCO.
_RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}


class Mask2Former:
    """Implements :class:`~chunk_grpo_core.rewards.geneval.reward.Detector`."""

    def __init__(
        self,
        network: Any,
        labels: Sequence[str],
        facts: Fingerprint,
        *,
        sides: tuple[int, int] = (_SHORT, _LONG),
    ) -> None:
        """Detect with a network.

        Args:
            network: ``Mask2FormerForUniversalSegmentation``.
            labels: The K classes.
            facts: Digest of the weights.
            sides: The picture is resized until its shorter side has the first number of pixels or
                its longer side the second; then both to multiples of 32.
        """
        self.network = network.train(False)
        self.labels = [_RENAMED.get(label, label) for label in labels]
        self.sides = sides
        self._facts = {**facts, "pixels": f"resize-{sides[0]}-{sides[1]}-1"}

    @property
    def fingerprint(self) -> Fingerprint:
        """Weights, preprocessing, dtype."""
        return {**self._facts, "dtype": str(self.network.dtype)}

    def __call__(self, levels: Tensor) -> list[Detection]:
        """See :class:`~chunk_grpo_core.rewards.geneval.reward.Detector`."""
        height, width = levels.shape[:2]
        short, long = self.sides
        scale = min(short / min(height, width), long / max(height, width))
        size = [max(1, round(side * scale / _MULTIPLE)) * _MULTIPLE for side in (height, width)]
        picture = levels.permute(2, 0, 1)[None].float() / 255.0
        resized = functional.interpolate(picture, size, mode="bilinear", antialias=True)
        with judging(self.network) as device:
            pixels = normalised(resized, _MEAN, _STD).to(device, self.network.dtype)
            output = self.network(pixel_values=pixels, pixel_mask=torch.ones_like(pixels[:, 0]))
            classes, masks = output.class_queries_logits[0], output.masks_queries_logits[0]
            return instances(
                classes.float().cpu(), masks.float().cpu(), self.labels, (height, width)
            )


def instances(
    classes: Tensor, masks: Tensor, labels: Sequence[str], size: tuple[int, int]
) -> list[Detection]:
    """Turn the answers of the queries into objects; those that no rule would look at are left out.

    Args:
        classes: Logits (Q, K + 1); the last class is "no object".
        masks: Logits (Q, h, w).
        labels: The K classes.
        size: H, W.
    """
    probabilities = classes.softmax(-1)[:, :-1]
    detections = []
    for query, label in (probabilities > CONFIDENCE).nonzero():
        logits = functional.interpolate(masks[query][None, None], size, mode="bilinear")[0, 0]
        mask = logits > 0
        if not mask.any():
            continue
        score = float(probabilities[query, label] * logits.sigmoid()[mask].mean())
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        detections.append(Detection(label=labels[int(label)], score=score, box=box, mask=mask))
    return detections


def load_mask2former(
    weights: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Mask2Former:
    """Load ``model.safetensors`` with the ``config.json`` beside it; nothing is downloaded.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The weights are those of another model, or the file has another name.
    """
    transformers = require("transformers", "To find objects in pictures")
    weights = Path(weights)
    folder, config = weights.parent, weights.with_name(CONFIG.name)
    if weights.name != WEIGHTS.name:
        raise ValueError(
            f"{weights} must be called {WEIGHTS.name}, with its {CONFIG.name} beside it"
        )
    for path in (config, weights):
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}; get it from {WEIGHTS.page} and put both files there"
            )
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    if kind != "mask2former":
        raise ValueError(f"{config} describes a model of type {kind!r}, not a mask2former")
    network, report = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    left_random = [*report["missing_keys"], *report["mismatched_keys"]]
    if left_random:
        raise ValueError(
            f"{weights} has no values for {left_random[:3]} ({len(left_random)} in all)"
        )
    names: Mapping[int, str] = network.config.id2label
    labels = [names[index] for index in range(len(names))]
    return Mask2Former(
        network.requires_grad_(False).to(device), labels, {"weights": digest(weights)}
    )
