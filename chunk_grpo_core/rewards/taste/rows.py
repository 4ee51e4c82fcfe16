"""Picks as rows of numbers: what each click says about the scores of the pictures it showed.

    duel     score of the better one minus that of the other one
    best     score of the best one minus the mean of the others
    hearts   a liked one minus the mean of those with a lower mark; the mean of those with a
             higher mark minus a rejected one
    like     the score itself, above or below a level that is fitted, too
    stars    the same, with a number
    same     nothing

Hearts are relative to what was shown beside them: as likes of their own they teach much less.

Legend: m rows (clicks), n pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .events import Pick

__all__ = ["Rows", "clicks", "rows_of"]


@dataclass(frozen=True)
class Rows:
    """What m clicks say about the scores of n pictures."""

    matrix: Tensor
    """(m, n), float64: each row times the scores is what the click is about."""
    targets: Tensor
    """(m,), float64: 1 for a difference, 1 or -1 for likes, standardised stars."""
    is_single: Tensor
    """(m,), bool: about the score of one picture, not about a difference."""
    is_number: Tensor
    """(m,), bool: stars, which are met by least squares."""
    groups: tuple[str, ...]
    """What is left out together."""
    picks: tuple[str, ...]
    """Id of the pick of each row."""

    def __len__(self) -> int:
        return len(self.picks)

    def first(self, count: int) -> Rows:
        """The first rows; those of the last pick among them stay together."""
        while 0 < count < len(self) and self.picks[count] == self.picks[count - 1]:
            count += 1
        return Rows(
            self.matrix[:count], self.targets[:count], self.is_single[:count],
            self.is_number[:count], self.groups[:count], self.picks[:count],
        )  # fmt: skip

    def used(self) -> Tensor:
        """Places of the pictures that occur in a row."""
        return (self.matrix != 0).any(0).nonzero().flatten()


def rows_of(picks: Sequence[Pick], place: Mapping[tuple[str, str], int], count: int) -> Rows:
    """Make rows of picks that count.

    Args:
        picks: In the order in which they were made.
        place: Picture and prompt -> its place among the n pictures. Picks that show another one
            are left out.
        count: n.
    """
    rows: list[dict[int, float]] = []
    targets: list[float] = []
    kinds: list[str] = []
    groups: list[str] = []
    ids: list[str] = []
    for pick in picks:
        keys = [(shown.picture, shown.prompt) for shown in pick.shown]
        if any(key not in place for key in keys):
            continue
        for row, target in clicks(pick):
            cells: dict[int, float] = {}
            for key, value in zip(keys, row, strict=True):
                cells[place[key]] = cells.get(place[key], 0.0) + value
            if not any(cells.values()):  # a picture against itself
                continue
            rows.append(cells)
            targets.append(target)
            kinds.append(pick.kind)
            groups.append(pick.group)
            ids.append(pick.id)
    matrix = torch.zeros(len(rows), count, dtype=torch.float64)
    for number, cells in enumerate(rows):
        for column, value in cells.items():
            matrix[number, column] = value
    is_number = torch.tensor([kind == "stars" for kind in kinds], dtype=torch.bool)
    is_single = torch.tensor([kind in ("like", "stars") for kind in kinds], dtype=torch.bool)
    values = _standardised(torch.tensor(targets, dtype=torch.float64), is_number)
    return Rows(matrix, values, is_single, is_number, tuple(groups), tuple(ids))


def clicks(pick: Pick) -> Iterator[tuple[list[float], float]]:
    """Factors of the pictures of a pick, and the target, of every row."""
    if pick.kind in ("duel", "best"):
        marks = [float(place == pick.answer) for place in range(len(pick.shown))]
        yield from _against_lower(marks)
    elif pick.kind == "hearts":
        yield from _against_lower(pick.answer)
        yield from _against_lower([-mark for mark in pick.answer], sign=-1.0)
    elif pick.kind == "like":
        yield [1.0], 1.0 if pick.answer else -1.0
    elif pick.kind == "stars":
        yield [1.0], float(max(pick.answer, 0))


def _against_lower(
    marks: Sequence[float], sign: float = 1.0
) -> Iterator[tuple[list[float], float]]:
    """Each picture with mark 1 against the mean of those with a lower one."""
    for place, mark in enumerate(marks):
        lower = [other for other, value in enumerate(marks) if value < mark]
        if mark == 1 and lower:
            row = [0.0] * len(marks)
            row[place] = sign
            for other in lower:
                row[other] = -sign / len(lower)
            yield row, 1.0


def _standardised(values: Tensor, mask: Tensor) -> Tensor:
    stars = values[mask]
    if len(stars):
        values[mask] = (stars - stars.mean()) / stars.std(correction=0).clamp(min=1e-9)
    return values
