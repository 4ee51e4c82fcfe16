"""How well a head learns simulated people, and whether its report is honest.

python -m benchmarks.taste [--seeds 5] [--random 200] [--out FOLDER]

Pictures are rendered scenes of the tiny world with faults: other attributes than the caption's,
other tints, blur and noise; 8 of each of 192 captions to click on, and of 96 others to judge by.
Six people have hidden tastes and click wrong in 0, 10 or 20 % of cases. Counted on pairs of
pictures of captions that nobody clicked on:

    accuracy   share of pairs, with a clear difference, that the head ranks as the person does
    coverage   how often the reported 95 % interval holds that person's true agreement with such
               clicks (all pairs, with as many wrong clicks)
    good       how often the report says "better than chance", of people and of random clickers who
               are asked for a report at every preset number of clicks
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from chunk_grpo_core.models.tiny.render import render_indices
from chunk_grpo_core.models.tiny.world import HELD_OUT, TRAIN, caption, indices_of
from chunk_grpo_core.rewards.taste.events import Pick, Shown, new_pick
from chunk_grpo_core.rewards.taste.fit import fit_picks
from chunk_grpo_core.rewards.taste.statistics import statistics

__all__ = ["PEOPLE", "PICTURES", "Pool", "clicks", "name_of", "pool", "truth"]

PICTURES = 8
FRESH = 1000
"""First seed: what a click is worth (``fit._WORTH``) was set on people with smaller ones."""
FRESH_RANDOM = 50_000
"""The same of people who click at random."""
COUNTS = (10, 20, 40, 80, 160)


@dataclass(frozen=True)
class Pool:
    """P captions with 8 pictures each."""

    captions: tuple[str, ...]
    wanted: Tensor
    """(P, 5) attributes."""
    drawn: Tensor
    """(P, 8, 5) attributes of the pictures."""
    pictures: Tensor
    """(P, 8, 64, 64, 3)."""
    raw: Tensor
    """(P, 8, 117)."""


@cache
def pool(held_out: bool) -> Pool:
    """Draw the pictures; always the same."""
    dice = torch.Generator().manual_seed(1 + held_out)
    scenes = HELD_OUT[:96] if held_out else TRAIN[:192]
    wanted = indices_of(scenes)
    drawn = wanted[:, None].repeat(1, PICTURES, 1)
    most = torch.tensor([2, 2, 6, 4, 6])
    other = (torch.rand(drawn.shape, generator=dice) * most).long()
    drawn = torch.where(torch.rand(drawn.shape, generator=dice) < 0.15, other, drawn)
    flat = drawn.flatten(0, 1)
    pictures = render_indices(flat, dice)
    count = len(pictures)
    tint = 1 + 0.25 * torch.randn(count, 1, 1, 3, generator=dice)
    shift = 0.1 * torch.randn(count, 1, 1, 1, generator=dice)
    blurred = functional.avg_pool2d(pictures.movedim(-1, 1), 5, 1, 2).movedim(1, -1)
    blur = torch.rand(count, 1, 1, 1, generator=dice)
    noise = 0.08 * torch.rand(count, 1, 1, 1, generator=dice)
    pictures = blur * blurred + (1 - blur) * pictures
    pictures = pictures * tint + shift + noise * torch.randn(pictures.shape, generator=dice)
    pictures = pictures.clamp(0, 1)
    shape = (len(scenes), PICTURES)
    return Pool(
        tuple(map(caption, scenes)), wanted, drawn, pictures.unflatten(0, shape),
        statistics(pictures).unflatten(0, shape),
    )  # fmt: skip


def _blue(of: Pool) -> Tensor:
    return (of.pictures[..., 2] - of.pictures[..., :2].mean(-1)).mean((2, 3))


def _yellow_triangles(of: Pool) -> Tensor:
    yellow = (of.pictures[..., :2].amin(-1) - of.pictures[..., 2]).mean((2, 3))
    return yellow / 0.1 + (of.drawn[..., 3] == 2)


def _clean(of: Pool) -> Tensor:
    small = functional.avg_pool2d(of.pictures.mean(-1), 3, 1, 1)
    grain = (of.pictures.mean(-1) - small).abs().mean((2, 3))
    return of.pictures.mean(-1).flatten(2).std(-1) - 8 * grain


def _quadratic(of: Pool) -> Tensor:
    luma = of.pictures.mean((2, 3, 4))
    return -((luma - 0.45) ** 2) * 20 + of.pictures.flatten(2).std(-1)


def _conditional(of: Pool) -> Tensor:
    sign = torch.tensor([1.0 if "circle" in text or "square" in text else -1.0
                         for text in of.captions])  # fmt: skip
    return sign[:, None] * of.pictures.mean((2, 3, 4))


def _adherence(of: Pool) -> Tensor:
    return (of.drawn == of.wanted[:, None]).float().mean(-1)


PEOPLE: dict[str, Callable[[Pool], Tensor]] = {
    "blue": _blue,
    "yellow, triangles": _yellow_triangles,
    "clean, contrast": _clean,
    "smooth quadratic": _quadratic,
    "conditional": _conditional,
    "adherence": _adherence,
}


@cache
def truth(person: str, held_out: bool) -> Tensor:
    """What a person thinks of every picture, (P, 8), in deviations of all."""
    likes = PEOPLE[person](pool(held_out))
    return likes / likes.std()


def numbers(of: Pool) -> dict[str, Tensor]:
    """Raw numbers by the name of the picture."""
    return {name_of(p, g): of.raw[p, g] for p in range(len(of.captions)) for g in range(PICTURES)}


def name_of(caption_number: int, picture: int) -> str:
    """What stands for the hash of a picture."""
    return f"{caption_number * PICTURES + picture:064x}"


def clicks(
    likes: Tensor | None,
    count: int,
    wrong: float,
    seed: int,
    kind: str = "duel",
    *,
    captions: Sequence[str] | None = None,
    first: int = 0,
) -> list[Pick]:
    """Simulated picks.

    Args:
        likes: What the person thinks of every picture, (P, 8); None is a random clicker.
        count: How many.
        wrong: Share of clicks that miss.
        seed: Of the choice of pictures, and of the clicks that miss.
        kind: See ``events.py``.
        captions: P captions of other pictures than those of ``pool(False)``.
        first: Number of the first caption, for the names of the pictures.
    """
    captions = pool(False).captions if captions is None else captions
    dice = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(captions), generator=dice)
    picks = []
    while len(picks) < count:
        p = int(order[len(picks) % len(order)])
        size = {"duel": 2, "like": 1}.get(kind, 4)
        places = torch.randperm(PICTURES, generator=dice)[:size].tolist()
        shown = [Shown(picture=name_of(first + p, g), prompt=captions[p]) for g in places]
        scores = torch.rand(size, generator=dice) if likes is None else likes[p, places]
        level = 0.5 if likes is None else float(likes.median())
        best = int(scores.argmax())
        is_wrong = bool(torch.rand((), generator=dice) < wrong)
        if kind == "like":
            answer: object = bool((scores[0] > level) != is_wrong)
        elif kind == "hearts":
            marks = torch.rand(size, generator=dice) if is_wrong else scores
            answer = [int(mark) for mark in marks >= marks.median().item()]
        else:
            answer = (best + is_wrong) % size
        picks.append(new_pick(kind, shown, answer))
    return picks


def judge(head, likes: Tensor, wrong: float) -> tuple[float, float]:
    """Accuracy on clear pairs, and agreement with clicks on all pairs, both unseen."""
    of = pool(True)
    scores = head.score(of.raw.flatten(0, 1), [t for t in of.captions for _ in range(PICTURES)])
    scores = scores[0].reshape(likes.shape)
    told = scores[:, :, None] - scores[:, None]
    real = likes[:, :, None] - likes[:, None]
    right = (told * real > 0).float()
    clear, any_pair = real > 0.1, real > 0
    share = float(right[any_pair].mean())
    return float(right[clear].mean()), share * (1 - wrong) + (1 - share) * wrong


def study(seeds: int, kind: str = "duel") -> dict:
    """Accuracy by person, wrong clicks and count; coverage and verdicts of the reports."""
    table, covered, good = {}, [], {}
    for person in PEOPLE:
        for wrong in (0.0, 0.1, 0.2):
            for seed in range(FRESH, FRESH + seeds):
                picks = clicks(truth(person, False), COUNTS[-1], wrong, seed, kind)
                for count in COUNTS:
                    fitted = fit_picks(picks[:count], numbers(pool(False)))
                    accuracy, agreement = judge(fitted.head, truth(person, True), wrong)
                    table.setdefault((person, wrong, count), []).append(accuracy)
                    interval = fitted.report.agreement
                    covered.append((count, interval.low <= agreement <= interval.high))
                    is_good = fitted.report.verdict == "better than chance"
                    good.setdefault((wrong, count), []).append(is_good)
    return {
        "accuracy": [[*key, _mean(values)] for key, values in table.items()],
        "coverage": {
            count: _mean([hit for n, hit in covered if n == count]) for count in COUNTS
        } | {"all": _mean([hit for _, hit in covered])},
        "good": [[*key, _mean(values)] for key, values in good.items()],
    }  # fmt: skip


def random_clickers(number: int, kind: str = "duel", most: int = 160) -> dict[str, float]:
    """How often someone who clicks at random is called understood, and is covered."""
    called, covered = [], []
    for seed in range(number):
        fitted = fit_picks(clicks(None, most, 0.0, FRESH_RANDOM + seed, kind), numbers(pool(False)))
        called.append(any(look.passed for look in fitted.report.looks))
        covered.append(fitted.report.agreement.low <= 0.5 <= fitted.report.agreement.high)
    return {"called good": _mean(called), "covered": _mean(covered)}


def _mean(values: list) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--random", type=int, default=200)
    parser.add_argument("--kind", default="duel", choices=["duel", "best", "hearts", "like"])
    parser.add_argument("--out", type=Path, default=Path("output/taste"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {"kind": options.kind, **study(options.seeds, options.kind)}
    result["random"] = random_clickers(options.random, options.kind)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.kind}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
