"""Fit a head to a taste, and find out how well it knows its owner.

Legend: n pictures (one with two prompts counts twice), m rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .captions import caption_vectors, mean_caption
from .events import Pick, Shown
from .features import Encoder, features_shown, scaling
from .head import Head, primal
from .picks import Taste
from .report import Look, Report, own_agreement, wilson
from .rows import Rows, rows_of
from .solve import gram_of, mean_diagonal, solve
from .validation import chance_of, folds, left_out, looks, ridge

__all__ = ["MEMBERS", "Fitted", "clicks_in", "fit_picks", "fit_taste"]

MEMBERS = 8
"""Of the ensemble, besides the head itself."""
_WORTH = {"duel": 0.58, "best": 0.42, "hearts": 0.3, "like": 0.27, "stars": 0.27}
"""How many independent clicks one click of each kind is worth: if one click tells another one, that
tells the first, too, and hearts share what they are compared with. Measured on people who click at
random, and on others (``python -m benchmarks.taste``)."""
_CURVE = (10, 20, 40, 80, 160, 320, 640, 1280)
_SHOWN = 8


@dataclass(frozen=True)
class Fitted:
    """A head and what is known about it."""

    head: Head
    report: Report


def fit_taste(taste: Taste, encoder: Encoder | None = None) -> Fitted:
    """Fit a head to the picks of a folder.

    Args:
        taste: Its pictures are read once, and their numbers kept in the folder.
        encoder: Joined with the statistics; without one they are alone.

    Raises:
        ValueError: No pick says which picture is better; a line of the file is wrong; or a file
            holds another picture than the one that was shown.
    """
    picks = taste.counting()
    numbers = features_shown(taste, [shown for pick in picks for shown in pick.shown], encoder)
    try:
        return fit_picks(picks, numbers, encoder)
    except ValueError as error:
        raise ValueError(f"{taste.folder}: {error}") from error


def clicks_in(picks: Sequence[Pick]) -> int:
    """How many clicks of some picks say which picture is better: a best of four is one, hearts are
    as many as there are hearts and crosses."""
    pictures = _pictures(picks)
    place = {(shown.picture, shown.prompt): i for i, shown in enumerate(pictures)}
    return len(rows_of(picks, place, len(pictures)))


def fit_picks(
    picks: Sequence[Pick], numbers: dict[str, Tensor], encoder: Encoder | None = None
) -> Fitted:
    """Fit a head to picks that count.

    Args:
        picks: In the order in which they were made.
        numbers: Hash of a picture -> what is seen of it, (D,); picks that show others are left out.
        encoder: For the record.

    Raises:
        ValueError: No pick says which picture is better.
    """
    pictures = _pictures(picks)
    held = [shown for shown in pictures if shown.picture in numbers]
    place = {(shown.picture, shown.prompt): i for i, shown in enumerate(held)}
    rows = rows_of(picks, place, len(held))
    missing = len({one.picture for one in pictures} - numbers.keys())
    if not len(rows) or not bool((rows.matrix != 0).any()):
        gone = f" ({missing} pictures are gone)" if missing else ""
        raise ValueError(f"none of its {len(picks)} picks says which picture is better{gone}")
    raw = torch.stack([numbers[shown.picture] for shown in held])
    parts = folds(rows)
    scale = scaling(raw)
    seen = scale(raw)
    plain = seen @ seen.T
    texts = [shown.prompt for shown in held]
    common = mean_caption(texts)
    vectors = caption_vectors(texts, common)
    kernel, judged = plain, left_out(gram_of(plain, rows), rows, parts)
    reads_captions = False
    if len(set(texts)) > 1:
        with_captions = plain * (0.5 + vectors @ vectors.T)
        other = left_out(gram_of(with_captions, rows), rows, parts)
        if other.loss < judged.loss:
            kernel, judged, reads_captions = with_captions, other, True
    weights, offsets, scores = _members(
        kernel, rows, judged.strength, seen, vectors if reads_captions else None
    )
    asked = judged.agrees.isfinite()
    kinds = {pick.id: pick.kind for pick in picks}
    worth = torch.tensor([_WORTH[kinds[name]] for name in rows.picks])[asked].sum()
    order = scores.argsort(descending=True).tolist()
    report = Report(
        picks=len(picks),
        kinds=dict(Counter(pick.kind for pick in picks)),
        agreement=wilson(float(judged.agrees[asked].sum()), int(asked.sum()), float(worth)),
        looks=_looks(raw, rows),
        own=own_agreement(picks),
        curve=_curve(raw, rows),
        reads_captions=reads_captions,
        strength=judged.strength,
        left_out_by="prompt" if len(set(rows.groups)) >= 5 else "pick",
        encoder=encoder.name if encoder else "",
        most_liked=_distinct([held[i].picture for i in order]),
        least_liked=_distinct([held[i].picture for i in reversed(order)]),
        disagrees=_disagreements(rows, judged.agrees, judged.said),
        missing_pictures=missing,
    )
    head = Head(
        weights,
        offsets,
        scale,
        common,
        encoder=encoder.name if encoder else "",
        encoder_digest=encoder.digest if encoder else "",
        report=report.to_json(),
    )
    return Fitted(head, report)


def _pictures(picks: Sequence[Pick]) -> list[Shown]:
    """Each picture with each of its prompts once, in the order in which they were shown."""
    return list({(one.picture, one.prompt): one for pick in picks for one in pick.shown}.values())


def _members(
    kernel: Tensor, rows: Rows, factor: float, seen: Tensor, vectors: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (M, D, 1 + C) and offsets (M,), and scores (n,) of the pictures that were shown."""
    gram = gram_of(kernel, rows)
    strength = factor * mean_diagonal(gram)
    beta = solve(gram, rows, strength)
    duals = [rows.matrix.T @ beta]
    for drawn in _draws(rows):
        duals.append(rows.matrix.T @ solve(gram, rows, strength, drawn, beta, tolerance=1e-5))
    scores = torch.stack([kernel @ dual for dual in duals])
    deviation = scores[0].std(correction=0).clamp(min=1e-9)
    weights = torch.stack([primal(seen, dual, vectors) for dual in duals]) / deviation
    offsets = scores.mean(1) / deviation
    return weights.float(), offsets.float(), scores[0]


def _draws(rows: Rows) -> list[Tensor]:
    """How often each row counts when groups are drawn with replacement."""
    dice = torch.Generator().manual_seed(7)
    number = {name: i for i, name in enumerate(sorted(set(rows.groups)))}
    of_row = torch.tensor([number[name] for name in rows.groups])
    draws = torch.randint(0, len(number), (MEMBERS, len(number)), generator=dice)
    return [draw.bincount(minlength=len(number)).double()[of_row] for draw in draws]


def _first(raw: Tensor, rows: Rows, count: int) -> tuple[Tensor, Rows]:
    """The Gram matrix of the first rows, scaled on their own pictures alone."""
    some = rows.first(count)
    used = some.used()
    seen = scaling(raw[used])(raw[used])
    some = Rows(
        some.matrix[:, used], some.targets, some.is_single, some.is_number, some.groups, some.picks
    )
    return gram_of(seen @ seen.T, some), some


def _looks(raw: Tensor, rows: Rows) -> tuple[Look, ...]:
    judged = []
    for clicks, limit in looks(len(rows)):
        gram, some = _first(raw, rows, clicks)
        judged.append(Look(clicks, chance_of(gram, some, folds(some)), limit))
    return tuple(judged)


def _curve(raw: Tensor, rows: Rows) -> tuple[tuple[int, float], ...]:
    counts = [count for count in _CURVE if count < len(rows)]
    points = []
    for count in [*counts, len(rows)]:
        gram, some = _first(raw, rows, count)
        share = float(ridge(gram, some, folds(some), some.targets[:, None])[0])
        if share == share:
            points.append((len(some), share))
    return tuple(points)


def _distinct(pictures: Sequence[str]) -> tuple[str, ...]:
    return tuple(list(dict.fromkeys(pictures))[:_SHOWN])


def _disagreements(rows: Rows, agrees: Tensor, said: Tensor) -> tuple[str, ...]:
    wrong = [(abs(float(said[i])), rows.picks[i]) for i in range(len(rows)) if agrees[i] < 0.5]
    return tuple(list(dict.fromkeys(pick for _, pick in sorted(wrong, reverse=True)))[:_SHOWN])
