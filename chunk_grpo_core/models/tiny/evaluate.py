"""How good the tiny FLUX is: rewards on held-out captions, and a sheet of sample pictures.

Legend: B pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...optional import require
from .model import TinyFlux, sample_images
from .reward import TinyWorldReward
from .world import HELD_OUT, caption

__all__ = ["evaluate", "save_sheet"]


def evaluate(flux: TinyFlux, seeds: Sequence[int], steps: int = 9) -> dict[str, float]:
    """Mean reward, scores and accuracies over all 96 held-out captions for each seed.

    Args:
        flux: The model.
        seeds: Seeds of the noise; 96 pictures each.
        steps: Euler steps, > 0.
    """
    captions, judge = [caption(scene) for scene in HELD_OUT], TinyWorldReward()
    batches = [judge.score(sample_images(flux, captions, s, steps), captions) for s in seeds]
    numbers = {"reward": torch.cat([batch.values for batch in batches])}
    for name in batches[0].extras:
        numbers[name] = torch.cat([batch.extras[name] for batch in batches])
    return {name: round(float(values.mean()), 4) for name, values in numbers.items()}


def save_sheet(images: Tensor, columns: int, path: Path, zoom: int = 2) -> None:
    """Write pictures (B, H, W, 3) in 0..1 as one PNG with ``columns`` pictures in a row.

    Raises:
        ImportError: Pillow is not installed.
    """
    pillow = require("PIL.Image", "To write a sheet of pictures")
    b, h, w, _ = images.shape
    rows, gap = -(-b // columns), 2
    sheet = torch.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 0.5)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = image
    bytes_ = (sheet.clamp(0, 1) * 255).round().byte()
    large = bytes_.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    pillow.fromarray(large.numpy()).save(path)
