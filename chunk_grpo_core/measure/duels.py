"""Blind duels: the model's picture against the LoRA's, from the same noise, judged by a person.

Nobody is told which is which, and sides are drawn. Twenty are enough to see a clear difference:
15 of 20 is 75 %, with an interval of 53 to 89 %.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..rewards.taste.report import wilson

__all__ = ["Duel", "DuelResult", "answered", "drawn_duels", "duels_from_json", "duels_to_json"]

SAME, LEFT, RIGHT = 0, 1, 2
_VERSION = 1


@dataclass(frozen=True)
class Duel:
    """Two pictures of one prompt from the same noise."""

    picture: str
    """File name; both stand side by side in it."""
    prompt: str
    seed: int
    """Noise seed of both."""
    lora_is_left: bool
    answer: int | None = None
    """1: the left one is better, 2: the right one, 0: the same; None: not answered."""


@dataclass(frozen=True)
class DuelResult:
    """What a person said."""

    lora: int
    """Duels that the LoRA won."""
    base: int
    """Duels that the model without it won."""
    same: int

    @property
    def share(self) -> tuple[float, float, float]:
        """Share of the decided duels that the LoRA won, and its 95 % interval (Wilson)."""
        decided = self.lora + self.base
        agreement = wilson(self.lora, decided)
        return (self.lora / decided if decided else 0.5), agreement.low, agreement.high

    def sentence(self) -> str:
        """The result in words."""
        total, decided = self.lora + self.base + self.same, self.lora + self.base
        counts = (
            f"Of {total} blind duels the LoRA won {self.lora}, the model without it {self.base}, "
            f"and {self.same} were the same to you."
        )
        if not decided:
            return f"{counts} Nothing can be said."
        share, low, high = self.share
        verdict = (
            "You like the LoRA's pictures better."
            if low > 0.5
            else "You like them better without the LoRA."
            if high < 0.5
            else "Which one you like better cannot be told yet; more duels would say."
        )
        return f"{counts} That is {share:.0%} ({low:.0%} to {high:.0%}; chance is 50 %). {verdict}"


def drawn_duels(prompts: Sequence[str], count: int, noise_seed: int, seed: int) -> list[Duel]:
    """Choose prompts, noise and sides.

    Args:
        prompts: Held-out prompts, 1 or more. Each has its turn before one comes again.
        count: Duels, 1 or more.
        noise_seed: Noise seed of the first duel; the next has the next.
        seed: Of the order of prompts and of the sides.

    Raises:
        ValueError: There are no prompts, or ``count`` is below 1.
    """
    if not prompts or count < 1:
        raise ValueError(
            f"{len(prompts)} prompts and {count} duels; there must be 1 or more of both"
        )
    drawn = random.Random(seed)
    order: list[str] = []
    while len(order) < count:
        order += drawn.sample(list(prompts), len(prompts))
    sides = [index % 2 == 0 for index in range(count)]
    drawn.shuffle(sides)
    digits = max(2, len(str(count)))
    return [
        Duel(f"{i + 1:0{digits}d}.png", prompt, (noise_seed + i) % 2**64, left)
        for i, (prompt, left) in enumerate(zip(order[:count], sides, strict=True))
    ]


def answered(duels: Sequence[Duel], answers: str) -> tuple[list[Duel], DuelResult]:
    """Take answers.

    Args:
        duels: All duels, in order.
        answers: A digit for each: 1 left, 2 right, 0 the same; spaces and commas do not count.

    Raises:
        ValueError: There is another character, or not one digit for each duel.
    """
    digits = [sign for sign in answers if sign not in " ,\n\t"]
    if wrong := next((sign for sign in digits if sign not in "012"), None):
        raise ValueError(f"the answers have {wrong!r}; each is 1 (left), 2 (right) or 0 (the same)")
    if len(digits) != len(duels):
        raise ValueError(
            f"there are {len(digits)} answers to {len(duels)} duels; give one digit for each, in "
            "the order of the pictures"
        )
    done = [replace(duel, answer=int(digit)) for duel, digit in zip(duels, digits, strict=True)]
    return done, result_of(done)


def result_of(duels: Sequence[Duel]) -> DuelResult:
    """Count duels that are all answered."""
    same = sum(duel.answer == SAME for duel in duels)
    lora = sum(duel.answer == (LEFT if duel.lora_is_left else RIGHT) for duel in duels)
    return DuelResult(lora=lora, base=len(duels) - same - lora, same=same)


def duels_to_json(duels: Sequence[Duel]) -> dict[str, Any]:
    """For ``duels.json``."""
    return {"version": _VERSION, "duels": [asdict(duel) for duel in duels]}


def duels_from_json(data: Mapping[str, Any], name: str) -> list[Duel]:
    """Read what :func:`duels_to_json` wrote.

    Args:
        data: The parsed file.
        name: Of the file, for messages.

    Raises:
        ValueError: It is of another version, or something else.
    """
    try:
        if data["version"] != _VERSION:
            raise ValueError(f"{name} is of version {data['version']}, and this reads {_VERSION}")
        return [Duel(**row) for row in data["duels"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name} is no file of duels: {error}; draw new ones") from error
