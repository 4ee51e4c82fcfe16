"""One report of one simulated person: what it says, and what is true."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from chunk_grpo_core.rewards.taste.captions import caption_vectors
from chunk_grpo_core.rewards.taste.fit import looks_at
from chunk_grpo_core.rewards.taste.learning import Learnt, learn

from .clicking import SHOWN, agreement, clicks, name_of
from .world import PEOPLE, PICTURES, likes_of, pool, ranks_of

__all__ = ["COUNTS", "FIELDS", "RANDOM", "RANDOM_SEEDS", "WRONG", "Case", "cases", "perform"]

COUNTS = (10, 20, 40, 80, 160)
RANDOM = "random"
"""The person who clicks at random."""
WRONG = (0.0, 0.1, 0.2)
SEEDS, LOOKS, RANDOM_SEEDS = 10, 5, 100
"""Of people; of these with verdicts; of the one who clicks at random, all with verdicts."""
FIELDS = (
    "person", "wrong", "kind", "clicks", "seed", "share", "asked", "low", "high", "true",
    "accuracy", "looks",
)  # fmt: skip
"""Of a row: the case; share of agreement, of so many that were asked, and the interval; the share
on unseen captions; accuracy there; and for each look its number of clicks and whether it passed."""
_CLEAR = 0.1
"""Difference, in deviations, from which a pair counts for the accuracy."""
_FIRST_SEED = 1_000_000


@dataclass(frozen=True)
class Case:
    """A person who has clicked so often."""

    person: str
    wrong: float
    kind: str
    clicks: int
    seed: int
    looks: bool
    """Whether the report gives its verdict, too."""


def cases(seeds: range) -> list[Case]:
    """All cases of some seeds, see PROTOCOL.md."""
    people = [(person, wrong) for person in PEOPLE for wrong in WRONG]
    return [
        Case(person, wrong, kind, count, seed, count == COUNTS[-1] and seed < most)
        for seed in seeds
        for person, wrong, most in [
            *((*one, LOOKS) for one in people if seed < SEEDS),
            *([(RANDOM, 0.0, RANDOM_SEEDS)] if seed < RANDOM_SEEDS else []),
        ]
        for kind in SHOWN
        for count in (COUNTS if seed < SEEDS else COUNTS[-1:])
    ]


@cache
def _numbers() -> dict[str, Tensor]:
    return {name_of(i): row for i, row in enumerate(pool().raw.flatten(0, 1))}


def perform(case: Case) -> dict[str, Any]:
    """Click, learn, and compare with the captions that were not clicked on; returns a row."""
    people = [*PEOPLE, RANDOM]
    place = (people.index(case.person) * len(WRONG) + WRONG.index(case.wrong)) * len(SHOWN)
    seed = _FIRST_SEED + 1000 * case.seed + place + list(SHOWN).index(case.kind)
    dice = torch.Generator().manual_seed(seed)
    captions = pool().captions
    order = torch.randperm(len(captions), generator=dice).tolist()
    chosen, unseen = order[: COUNTS[-1]], order[COUNTS[-1] :]
    is_random = case.person == RANDOM
    ranks = torch.rand(len(captions), PICTURES, generator=dice) if is_random else ranks_of(
        case.person
    )  # fmt: skip
    picks = clicks(
        ranks, case.clicks, case.wrong, seed, case.kind, captions=captions, places=chosen
    )
    learnt = learn(picks, _numbers())
    scores = _scores(learnt, unseen)
    said = learnt.agreement
    return {
        **{name: value for name, value in asdict(case).items() if name != "looks"},
        "share": round(said.share, 4),
        "asked": said.clicks,
        "low": round(said.low, 4),
        "high": round(said.high, 4),
        "true": 0.5 if is_random else round(
            agreement(scores, ranks[unseen], case.wrong, case.kind, dice), 4
        ),
        "accuracy": None if is_random else round(_accuracy(scores, case.person, unseen), 4),
        "looks": [[look.clicks, look.passed] for look in looks_at(learnt.raw, learnt.rows)]
        if case.looks
        else None,
    }  # fmt: skip


def _scores(learnt: Learnt, places: list[int]) -> Tensor:
    """What the head says of the pictures of some captions, (P, G)."""
    seen = learnt.scale(pool().raw[places].flatten(0, 1))
    told = (seen @ learnt.weights(learnt.duals())[0]).view(len(places), PICTURES, -1)
    if learnt.vectors is None:
        return told[..., 0]
    texts = [pool().captions[p] for p in places]
    vectors = caption_vectors(texts, learnt.common)
    return told[..., 0] + (told[..., 1:] * vectors[:, None]).sum(-1)


def _accuracy(scores: Tensor, person: str, places: list[int]) -> float:
    """Share of clear pairs inside a caption that the head ranks as the person does."""
    likes = likes_of(person)[places]
    told = scores[:, :, None] - scores[:, None]
    return float((told[likes[:, :, None] - likes[:, None] > _CLEAR] > 0).float().mean())
