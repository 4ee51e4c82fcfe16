"""What the grids of Score Images and Evaluate LoRA show, as JSON.

Every value of ``ui`` must be a list; where ComfyUI runs a node several times it joins them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..chunk_grpo_core.method.reward import RewardBatch
from ..chunk_grpo_core.watch.comparison import Comparison
from ..chunk_grpo_core.watch.pictures import best_first
from .bridge.pictures import temporary_pictures

__all__ = ["PICTURES_AT_MOST", "extremes", "pair_rows", "score_rows"]

PICTURES_AT_MOST = 256
"""Pictures that one run writes for the page."""

Ui = dict[str, list[Any]]


def extremes(scores: Tensor, count: int) -> list[int]:
    """Places of the ``count`` scores to show, in their order: half the best, half the worst."""
    order = best_first(scores).tolist()
    if len(order) <= count:
        return sorted(order)
    best = math.ceil(count / 2)
    return sorted(order[:best] + order[len(order) - (count - best) :])


def score_rows(pictures: Tensor, prompts: Sequence[str], batch: RewardBatch) -> Ui:
    """Rows of Score Images: number, score, prompt, the score of every part, the file.

    Args:
        pictures: (B, H, W, 3) in 0..1.
        prompts: B captions.
        batch: Their scores.
    """
    scores, details = batch.known, batch.details
    shown = extremes(scores, PICTURES_AT_MOST)
    files = temporary_pictures([pictures[index] for index in shown])
    rows = [
        {
            "number": index,
            "score": _finite(scores[index]),
            "prompt": prompts[index],
            "parts": {name: _finite(values[index]) for name, values in details.items()},
            "picture": file,
        }
        for index, file in zip(shown, files, strict=True)
    ]
    return {"chunk_grpo_scores": rows, "chunk_grpo_total": [len(prompts)]}


def pair_rows(comparison: Comparison) -> Ui:
    """Rows of Evaluate LoRA, and one summary of all prompts.

    A row has number, prompt, the means ``base`` and ``lora`` over its pictures with their ``gain``,
    the same of every further number, the scores of the two pictures shown, and their files.
    """
    before, after = comparison.before, comparison.after
    rows = comparison.rows()
    shown = extremes(comparison.gains, PICTURES_AT_MOST // 2)
    files = temporary_pictures([e.images[index] for index in shown for e in (before, after)])
    pairs = zip(files[::2], files[1::2], strict=True)
    chosen = [
        {**_plain(rows[index]), "pictures": list(pair)}
        for index, pair in zip(shown, pairs, strict=True)
    ]
    return {"chunk_grpo_pairs": chosen, "chunk_grpo_gain": [_plain(comparison.summary())]}


def _finite(value: Any) -> float | None:
    """JSON knows no nan."""
    return float(value) if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return _finite(value) if isinstance(value, float) else value
