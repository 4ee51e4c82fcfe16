"""What is learnt from picks before a head is made of it: what it reads, and how well that works.

Legend: n pictures (one with two prompts counts twice), m rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .captions import caption_vectors, mean_caption
from .events import Pick, Shown
from .features import Scaling, scaling
from .head import primal
from .report import Agreement, wilson
from .rows import Rows, rows_of
from .solve import gram_of, mean_diagonal, solve
from .validation import LeftOut, dispersion, folds, left_out

__all__ = ["Learnt", "learn", "pictures_of"]


@dataclass(frozen=True)
class Learnt:
    """A kernel and a strength, chosen by the clicks that were left out."""

    shown: tuple[Shown, ...]
    """n pictures."""
    raw: Tensor
    """(n, D)."""
    scale: Scaling
    rows: Rows
    common: Tensor
    """(128,), what their captions have in common."""
    vectors: Tensor | None
    """(n, 128) of the captions, if they are read."""
    kernel: Tensor
    """(n, n)."""
    left_out: LeftOut
    agreement: Agreement

    @property
    def seen(self) -> Tensor:
        """What is seen of the pictures, (n, D), float64."""
        return self.scale(self.raw)

    def duals(self, draws: Sequence[Tensor] = ()) -> list[Tensor]:
        """Factor of each picture, (n,), of the head and of one for each draw of the rows, (m,)."""
        gram = gram_of(self.kernel, self.rows)
        strength = self.left_out.strength * mean_diagonal(gram)
        beta = solve(gram, self.rows, strength)
        others = [solve(gram, self.rows, strength, draw, beta, tolerance=1e-5) for draw in draws]
        return [self.rows.matrix.T @ one for one in (beta, *others)]

    def weights(self, duals: Sequence[Tensor]) -> Tensor:
        """The same in primal form, (M, D, 1 + C)."""
        return torch.stack([primal(self.seen, dual, self.vectors) for dual in duals])


def learn(picks: Sequence[Pick], numbers: Mapping[str, Tensor]) -> Learnt:
    """Choose what is read and how strongly it is held back.

    Args:
        picks: In the order in which they were made.
        numbers: Hash of a picture -> what is seen of it, (D,); picks that show others are left out.

    Raises:
        ValueError: No pick says which picture is better.
    """
    pictures = pictures_of(picks)
    held = tuple(shown for shown in pictures if shown.picture in numbers)
    place = {(shown.picture, shown.prompt): i for i, shown in enumerate(held)}
    rows = rows_of(picks, place, len(held))
    if not len(rows) or not bool((rows.matrix != 0).any()):
        missing = len({one.picture for one in pictures} - numbers.keys())
        gone = f" ({missing} pictures are gone)" if missing else ""
        raise ValueError(f"none of its {len(picks)} picks says which picture is better{gone}")
    raw = torch.stack([numbers[shown.picture] for shown in held])
    parts, scale = folds(rows), scaling(raw)
    seen = scale(raw)
    plain = seen @ seen.T
    texts = [shown.prompt for shown in held]
    common = mean_caption(texts)
    kernel, vectors = plain, None
    judged = left_out(gram_of(plain, rows), rows, parts)
    if len(set(texts)) > 1:
        hashed = caption_vectors(texts, common)
        with_captions = plain * (0.5 + hashed @ hashed.T)
        other = left_out(gram_of(with_captions, rows), rows, parts)
        if other.loss < judged.loss:
            kernel, vectors, judged = with_captions, hashed, other
    asked = judged.agrees.isfinite()
    count = int(asked.sum())
    spread = dispersion(gram_of(plain, rows), rows, parts)
    agreement = wilson(float(judged.agrees[asked].sum()), count, count / spread)
    return Learnt(held, raw, scale, rows, common, vectors, kernel, judged, agreement)


def pictures_of(picks: Sequence[Pick]) -> list[Shown]:
    """Each picture with each of its prompts once, in the order in which they were shown."""
    return list({(one.picture, one.prompt): one for pick in picks for one in pick.shown}.values())
