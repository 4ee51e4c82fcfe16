"""Simulated picks, and how often a head would agree with more of them.

    duel      the better of two
    best      the best of four
    hearts    hearts for the best one to three of four, in half of the cases a cross for the worst
    like      whether a picture is better than half of all
    stars     1 to 5: in which fifth of all it is

A wrong click takes the next picture (duel, best), is an answer at random (hearts, stars), or the
opposite (like).

Legend: P captions, G pictures of each; B picks that show S pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chunk_grpo_core.rewards.taste.events import Pick, Shown, new_pick

__all__ = ["SHOWN", "agreement", "clicks", "name_of"]

SHOWN = {"duel": 2, "best": 4, "hearts": 4, "like": 1, "stars": 1}
"""Kind -> S."""


def name_of(number: int) -> str:
    """What stands for the hash of a picture: its number, G for each caption before its own."""
    return f"{number:064x}"


def answers(kind: str, likes: Tensor, wrong: float, dice: torch.Generator) -> Tensor:
    """What a person answers.

    Args:
        kind: See above.
        likes: (B, S); for likes and stars from 0 to 1, evenly.
        wrong: Share of clicks that miss.
        dice: For those, and for the number of hearts.

    Returns:
        Marks (B, S): 1, 0 or -1; stars, 1 to 5.
    """
    count, size = likes.shape
    misses = torch.rand(count, 1, generator=dice) < wrong
    if kind in ("duel", "best"):
        best = (likes.argmax(1, keepdim=True) + misses) % size
        return torch.zeros(likes.shape, dtype=torch.long).scatter(1, best, 1)
    if kind == "like":
        return ((likes > 0.5) != misses).long()
    likes = torch.where(misses, torch.rand(likes.shape, generator=dice), likes)
    if kind == "stars":
        return (likes * 5).long().clamp(max=4) + 1
    place = likes.argsort(1, descending=True).argsort(1)
    hearts = torch.randint(1, size, (count, 1), generator=dice)
    cross = torch.rand(count, 1, generator=dice) < 0.5
    return (place < hearts).long() - ((place == size - 1) & cross).long()


def clicks(
    likes: Tensor,
    count: int,
    wrong: float,
    seed: int,
    kind: str = "duel",
    *,
    captions: Sequence[str],
    places: Sequence[int] | None = None,
    first: int = 0,
) -> list[Pick]:
    """Simulated picks, each of another caption as long as there are any.

    Args:
        likes: What the person thinks of every picture, (P, G); see ``answers``.
        count: How many clicks as the report counts them; hearts of a last pick may be more.
        wrong: Share of clicks that miss.
        seed: Of the choice of pictures, and of the clicks that miss.
        kind: See above.
        captions: P of them.
        places: Which captions, in which order; drawn from all of them by default.
        first: Number of the first caption, for the names of the pictures.
    """
    dice = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(captions), generator=dice).tolist() if places is None else places
    picks: list[Pick] = []
    left = count
    while left > 0:
        p = order[len(picks) % len(order)]
        chosen = torch.randperm(likes.shape[1], generator=dice)[: SHOWN[kind]].tolist()
        numbers = [(first + p) * likes.shape[1] + g for g in chosen]
        shown = [Shown(picture=name_of(number), prompt=captions[p]) for number in numbers]
        marks = answers(kind, likes[p, chosen][None], wrong, dice)[0].tolist()
        answer = {"duel": marks.index(max(marks)), "best": marks.index(max(marks)),
                  "hearts": marks, "like": marks[0] == 1, "stars": marks[0]}[kind]  # fmt: skip
        picks.append(new_pick(kind, shown, answer))
        left -= sum(mark != 0 for mark in marks) if kind == "hearts" else 1
    return picks


def agreement(
    scores: Tensor, likes: Tensor, wrong: float, kind: str, dice: torch.Generator, rounds: int = 4
) -> float:
    """Share of further clicks that a head agrees with, counted as the report counts.

    Args:
        scores: What the head says of pictures, (P, G).
        likes: What the person thinks of them, (P, G).
        wrong: Share of clicks that miss.
        kind: See above.
        dice: For the choice of pictures, and the clicks.
        rounds: How often every picture is shown; each once for likes and stars.
    """
    if SHOWN[kind] == 1:
        marks = answers(kind, likes.flatten()[:, None], wrong, dice)[:, 0]
        return _in_order(scores.flatten(), marks)
    right = total = 0.0
    for _ in range(rounds):
        order = torch.rand(scores.shape, generator=dice).argsort(1)
        told = scores.gather(1, order).view(-1, SHOWN[kind])
        marks = answers(kind, likes.gather(1, order).view(-1, SHOWN[kind]), wrong, dice)
        for sign, others in ((1, marks < 1), (-1, marks > -1)):
            asked = (marks == sign) & others.any(1, keepdim=True)
            count = others.sum(1, keepdim=True).clamp(min=1)
            beside = (told * others).sum(1, keepdim=True) / count
            right += float((asked * ((told - beside) * sign > 0)).sum())
            total += float(asked.sum())
    return right / total


def _in_order(scores: Tensor, marks: Tensor) -> float:
    """Share of the pairs with other marks that have the order of their marks."""
    marks = marks[scores.argsort()]
    right = total = 0
    for low in marks.unique().tolist():
        before = (marks == low).cumsum(0)
        for high in marks.unique().tolist():
            if high > low:
                right += int(before[marks == high].sum())
                total += int((marks == low).sum()) * int((marks == high).sum())
    return right / total
