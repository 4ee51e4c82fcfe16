"""Score heads that are several linear layers with nothing between them: one affine map.

The LAION aesthetic predictor and ImageReward both end in 5 layers (D, 1024, 128, 64, 16, 1) whose
activations are commented out and whose dropouts do nothing when judging. Their product is computed
in float64, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["LAYERS", "linear_head"]

LAYERS = (0, 2, 4, 6, 7)
"""Numbers of the linear layers in the files; those between were dropouts."""


def linear_head(tensors: Mapping[str, Tensor], source: str | Path) -> nn.Linear:
    """Multiply the layers out.

    Args:
        tensors: ``layers.<i>.weight`` and ``layers.<i>.bias`` for i in :data:`LAYERS`.
        source: The file, for messages.

    Returns:
        (..., D) -> (..., 1), float32.

    Raises:
        ValueError: Other names, or shapes that do not follow on each other.
    """
    wanted = {f"layers.{i}.{kind}" for i in LAYERS for kind in ("weight", "bias")}
    if wrong := sorted(wanted ^ tensors.keys()):
        raise ValueError(
            f"{source} does not fit: the head must have the tensors {', '.join(sorted(wanted))}; "
            f"missing or unknown: {', '.join(wrong[:5])}"
        )
    weight = torch.eye(tensors["layers.0.weight"].shape[-1], dtype=torch.float64)
    bias = torch.zeros(len(weight), dtype=torch.float64)
    for i in LAYERS:
        layer = tensors[f"layers.{i}.weight"].double()
        if layer.ndim != 2 or layer.shape[1] != len(weight):
            raise ValueError(
                f"{source} does not fit: layers.{i}.weight has shape {tuple(layer.shape)}, but "
                f"{len(weight)} features come in"
            )
        bias = layer @ bias + tensors[f"layers.{i}.bias"].double()
        weight = layer @ weight
    if len(weight) != 1:
        raise ValueError(f"{source} does not fit: it gives {len(weight)} numbers, not one score")
    head = nn.Linear(weight.shape[1], 1)
    head.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return head.requires_grad_(False).train(False)
