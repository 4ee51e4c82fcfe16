"""Fit a head to a taste, and find out how well it knows its owner.

Legend: n pictures (one with two prompts counts twice), m rows, M members of the ensemble.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .events import Pick
from .features import Encoder, features_shown, scaling
from .head import Head
from .learning import learn, pictures_of
from .picks import Taste
from .report import Look, Report, own_agreement
from .rows import Rows, rows_of
from .solve import gram_of
from .validation import chance_of, folds, looks, ridge

__all__ = ["MEMBERS", "Fitted", "clicks_in", "fit_picks", "fit_taste", "looks_at"]

MEMBERS = 8
"""Of the ensemble, besides the head itself."""
_CURVE = (10, 20, 40, 80, 160, 320, 640, 1280)
_SHOWN = 8


@dataclass(frozen=True)
class Fitted:
    """A head and what is known about it."""

    head: Head
    report: Report


def fit_taste(
    taste: Taste, encoder: Encoder | None = None, picks: Sequence[Pick] | None = None
) -> Fitted:
    """Fit a head to the picks of a folder.

    Args:
        taste: Its pictures are read once, and their numbers kept in the folder.
        encoder: Joined with the statistics; without one they are alone.
        picks: Those of the folder that are taken; all that count if None.

    Raises:
        ValueError: No pick says which picture is better; a line of the file is wrong; or a file
            holds another picture than the one that was shown.
    """
    picks = taste.counting() if picks is None else picks
    numbers = features_shown(taste, [shown for pick in picks for shown in pick.shown], encoder)
    try:
        return fit_picks(picks, numbers, encoder)
    except ValueError as error:
        raise ValueError(f"{taste.folder}: {error}") from error


def clicks_in(picks: Sequence[Pick]) -> int:
    """How many clicks of some picks say which picture is better: a best of four is one, hearts are
    as many as there are hearts and crosses."""
    pictures = pictures_of(picks)
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
    learnt = learn(picks, numbers)
    rows, raw, judged = learnt.rows, learnt.raw, learnt.left_out
    duals = learnt.duals(_draws(rows))
    scores = torch.stack([learnt.kernel @ dual for dual in duals])
    deviation = scores[0].std(correction=0).clamp(min=1e-9)
    order = scores[0].argsort(descending=True).tolist()
    report = Report(
        picks=len(picks),
        kinds=dict(Counter(pick.kind for pick in picks)),
        agreement=learnt.agreement,
        looks=looks_at(raw, rows),
        own=own_agreement(picks),
        curve=(*_curve(raw, rows), (len(rows), learnt.agreement.share)),
        reads_captions=learnt.vectors is not None,
        strength=judged.strength,
        left_out_by="prompt" if len(set(rows.groups)) >= 5 else "pick",
        encoder=encoder.name if encoder else "",
        most_liked=_distinct([learnt.shown[i].picture for i in order]),
        least_liked=_distinct([learnt.shown[i].picture for i in reversed(order)]),
        disagrees=_disagreements(rows, judged.agrees, judged.said),
        missing_pictures=len({one.picture for one in pictures_of(picks)} - numbers.keys()),
    )
    head = Head(
        (learnt.weights(duals) / deviation).float(),
        (scores.mean(1) / deviation).float(),
        learnt.scale,
        learnt.common,
        encoder=encoder.name if encoder else "",
        encoder_digest=encoder.digest if encoder else "",
        report=report.to_json(),
    )
    return Fitted(head, report)


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


def looks_at(raw: Tensor, rows: Rows) -> tuple[Look, ...]:
    """Judge the first clicks at every preset number of them.

    Args:
        raw: What is seen of the pictures, (n, D).
        rows: Of all clicks.
    """
    judged = []
    for clicks, limit in looks(len(rows)):
        gram, some = _first(raw, rows, clicks)
        judged.append(Look(clicks, chance_of(gram, some, folds(some)), limit))
    return tuple(judged)


def _curve(raw: Tensor, rows: Rows) -> tuple[tuple[int, float], ...]:
    """With fewer clicks than there are; of pictures alone, as a head of captions takes longer."""
    points = []
    for count in [count for count in _CURVE if count < len(rows)]:
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
