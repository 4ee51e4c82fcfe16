"""How well a head predicts clicks that it has not seen, and whether that could be luck.

Clicks on one prompt are left out together, in five parts. lambda is chosen by the mean loss of the
clicks that were left out: chosen by how many are right, the figure would be four points too good.

Whether it could be luck is told by a permutation test: the answers are flipped at random, five
hundred times, and the whole thing, with its choice of lambda, is done again with each of them
(least squares instead of logistic loss, which hardly differs and takes one factorisation for all).
It is made at preset numbers of clicks only, always on the first so many clicks, and each look has
its share of 5 %, so that someone who clicks at random and looks again and again is called
understood in at most 5 % of cases.

Legend: m rows, L values of lambda, P permutations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import Rows
from .solve import LAMBDAS, losses, mean_diagonal, solve

__all__ = [
    "LOOKS",
    "LeftOut",
    "agreement",
    "chance_of",
    "dispersion",
    "folds",
    "left_out",
    "looks",
    "ridge",
]

LOOKS: tuple[tuple[int, float], ...] = (
    (40, 0.02), (80, 0.015), (160, 0.01), (320, 0.004),
)  # fmt: skip
"""Number of clicks at which it is judged, and what a chance below which is called no luck; the
shares sum to less than 5 %."""
_FOLDS = 5
_PARTNERS = 16
_PERMUTATIONS = 499
_SPREAD = 99
"""Permutations for the dispersion."""
_RIDGE = (1.0, 0.3, 0.1, 0.03)


@dataclass(frozen=True)
class LeftOut:
    """What was predicted of clicks that were left out."""

    strength: float
    """The lambda that was chosen, over the mean diagonal of the Gram matrix."""
    loss: float
    """Mean loss at it; log 2 = 0.693 is chance for clicks."""
    said: Tensor
    """(m,): what the head said of each row."""
    agrees: Tensor
    """(m,): 1 where it agrees, 0 where not, between for single pictures; NaN where nothing can be
    compared."""


def folds(rows: Rows) -> Tensor:
    """Part of each row, (m,), 0 to 4; the same for all rows of one group.

    Groups are dealt in the order of the hashes of their names, so that equal rows always get equal
    parts. Where there are fewer groups than parts, every pick is a group.
    """
    names = rows.groups if len(set(rows.groups)) >= _FOLDS else rows.picks
    order = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    part = {name: number % _FOLDS for number, name in enumerate(order)}
    return torch.tensor([part[name] for name in names], dtype=torch.long)


def left_out(gram: Tensor, rows: Rows, parts: Tensor) -> LeftOut:
    """Fit without each part in turn, for every lambda; keep the best lambda."""
    unit = mean_diagonal(gram)
    said = torch.zeros(len(LAMBDAS), len(rows), dtype=torch.float64)
    for out, rest in _splits(parts):
        inner = _some(rows, rest)
        kept = gram[rest][:, rest]
        across = gram[out][:, rest]
        start = None
        for number, factor in enumerate(LAMBDAS):
            start = solve(kept, inner, factor * unit, start=start, tolerance=1e-4)
            said[number, out] = across @ start
    loss = losses(said, rows).mean(1)
    best = int(loss.argmin()) if len(rows) else 0
    agrees = agreement(said[best][:, None], rows, parts, rows.targets[:, None])[:, 0]
    return LeftOut(LAMBDAS[best], float(loss[best]), said[best], agrees)


def agreement(said: Tensor, rows: Rows, parts: Tensor, targets: Tensor) -> Tensor:
    """Where a head agrees with clicks, (m, P): 1, 0, or 0.5 for a tie.

    A single picture is compared with up to 16 others of its part that got another answer: the
    share of them that are in the right order. NaN where there is none.

    Args:
        said: (m, P).
        rows: Which of them are about single pictures.
        parts: (m,).
        targets: (m, P).
    """
    agrees = (torch.sign(said * targets) + 1) / 2
    for part in range(_FOLDS):
        places = (rows.is_single & (parts == part)).nonzero().flatten()
        if not len(places):
            continue
        right = torch.zeros(len(places), targets.shape[1], dtype=torch.float64)
        count = torch.zeros_like(right)
        for offset in range(1, min(_PARTNERS + 1, len(places))):
            other = places.roll(-offset)
            asked = torch.sign(targets[places] - targets[other])
            told = torch.sign(said[places] - said[other])
            right += torch.where(asked != 0, (asked * told + 1) / 2, 0.0)
            count += (asked != 0).double()
        agrees[places] = torch.where(count > 0, right / count.clamp(min=1), torch.nan)
    return agrees


def ridge(gram: Tensor, rows: Rows, parts: Tensor, targets: Tensor) -> Tensor:
    """Share of agreement of left-out clicks, (P,), by least squares.

    lambda is chosen for each column on its own, by the squares of the clicks that were left out.

    Args:
        gram: (m, m).
        rows: Which of them are about single pictures.
        parts: (m,).
        targets: (m, P), all columns of them fitted.
    """
    unit = mean_diagonal(gram)
    best_loss = torch.full((targets.shape[1],), torch.inf, dtype=torch.float64)
    best = torch.zeros_like(best_loss)
    splits = list(_splits(parts))
    for factor in _RIDGE:
        said = torch.zeros_like(targets)
        for out, rest in splits:
            inner = gram[rest][:, rest]
            inner = inner + factor * unit * torch.eye(len(inner), dtype=inner.dtype)
            beta = torch.cholesky_solve(targets[rest], torch.linalg.cholesky(inner))
            said[out] = gram[out][:, rest] @ beta
        loss = (said - targets).square().mean(0)
        share = agreement(said, rows, parts, targets).nanmean(0)
        is_better = loss < best_loss
        best_loss = torch.where(is_better, loss, best_loss)
        best = torch.where(is_better, share, best)
    return best


def chance_of(gram: Tensor, rows: Rows, parts: Tensor, permutations: int = _PERMUTATIONS) -> float:
    """How often random answers agree as well as the real ones: a p-value, in (0, 1]."""
    shares = ridge(gram, rows, parts, _permuted(rows, permutations))
    return float((shares >= shares[0] - 1e-12).double().mean())


def dispersion(gram: Tensor, rows: Rows, parts: Tensor) -> float:
    """How much more the share of agreement varies by chance than that of independent coins.

    The variance of the share over random answers, over that of as many coins; at least 1. Clicks
    that were left out are not independent: if one tells another one, that tells the first, too;
    hearts share what they are compared with, and so do single pictures.
    """
    shares = ridge(gram, rows, parts, _permuted(rows, _SPREAD))[1:]
    shares = shares[shares.isfinite()]
    if len(shares) < 2:
        return 1.0
    asked = agreement(rows.targets[:, None], rows, parts, rows.targets[:, None]).isfinite().sum()
    return max(1.0, float(shares.var()) * 4 * int(asked))


def _permuted(rows: Rows, permutations: int) -> Tensor:
    """The answers (m, 1 + P): the real ones, then P times random ones.

    Differences are flipped at random, the rows of one pick together; the answers about single
    pictures are dealt anew among them. The same picks always get the same numbers.
    """
    dice = torch.Generator().manual_seed(2511)
    targets = rows.targets[:, None].repeat(1, permutations + 1)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(rows.picks))}
    of_pick = torch.tensor([numbers[name] for name in rows.picks], dtype=torch.long)
    flips = torch.randint(0, 2, (len(numbers), permutations), generator=dice) * 2 - 1
    targets[:, 1:] *= torch.where(rows.is_single[:, None], 1, flips[of_pick])
    for kind in (rows.is_single & ~rows.is_number, rows.is_number):
        places = kind.nonzero().flatten()
        if len(places) > 1:
            order = torch.rand(len(places), permutations, generator=dice).argsort(0)
            targets[places, 1:] = rows.targets[places][order]
    return targets


def looks(count: int) -> tuple[tuple[int, float], ...]:
    """The looks that so many clicks allow: number of clicks and limit of the chance."""
    return tuple((clicks, limit) for clicks, limit in LOOKS if clicks <= count)


def _splits(parts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Places of the rows that are left out, and of the others, for every part that has any."""
    for part in parts.unique().tolist():
        out, rest = (parts == part).nonzero().flatten(), (parts != part).nonzero().flatten()
        if len(rest):
            yield out, rest


def _some(rows: Rows, places: Tensor) -> Rows:
    chosen = places.tolist()
    return Rows(
        rows.matrix[places], rows.targets[places], rows.is_single[places], rows.is_number[places],
        tuple(rows.groups[i] for i in chosen), tuple(rows.picks[i] for i in chosen),
    )  # fmt: skip
