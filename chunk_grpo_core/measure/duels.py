"""Blind duels: the model's picture against the LoRA's, from the same noise, judged by a person.

Nobody is told which is which, and sides are drawn. Twenty are enough to see a clear difference:
15 of 20 is 75 %, with an interval of 53 to 89 %.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import Tensor

from ..method.cancel import CheckCancel, never_cancel
from ..method.policy import Policy
from ..method.sampler import Sampler
from ..method.schedule import TimeGrid
from ..rewards.taste.report import wilson
from ..settings.blaming import blaming
from ..settings.declared import check_settings, shortened
from ..train.batch_limit import BatchLimit
from .sampling import draw

__all__ = [
    "OTHER_NOISE",
    "Duel",
    "DuelResult",
    "answered",
    "drawn_duels",
    "duel_pictures",
    "duels_from_json",
    "duels_to_json",
    "result_of",
    "sides_drawn_again",
    "with_answer",
    "without_last_answer",
]

SAME, LEFT, RIGHT = 0, 1, 2
OTHER_NOISE = 1_000_000
"""What is added to the noise seed of a measurement: duels show no picture that it has shown."""
_VERSION = 1


@dataclass(frozen=True)
class Duel:
    """Two pictures of one prompt from the same noise."""

    picture: str
    """File name; both stand side by side in it. Each alone: :attr:`sides`."""
    prompt: str
    seed: int
    """Noise seed of both."""
    lora_is_left: bool
    answer: int | None = None
    """1: the left one is better, 2: the right one, 0: the same; None: not answered."""

    @property
    def sides(self) -> tuple[str, str]:
        """File names of the left picture and of the right one."""
        stem = self.picture.removesuffix(".png")
        return f"{stem}_left.png", f"{stem}_right.png"


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
    sides = _sides(count, drawn)
    digits = max(2, len(str(count)))
    return [
        Duel(f"{i + 1:0{digits}d}.png", prompt, (noise_seed + i) % 2**64, left)
        for i, (prompt, left) in enumerate(zip(order[:count], sides, strict=True))
    ]


def sides_drawn_again(duels: Sequence[Duel], key: str) -> list[Duel]:
    """Draw the sides by a text instead, such as a digest of the pictures: whoever knows the seed
    does not know them, and the same pictures stand on the same sides."""
    sides = _sides(len(duels), random.Random(f"sides of {key}"))
    return [replace(duel, lora_is_left=left) for duel, left in zip(duels, sides, strict=True)]


def _sides(count: int, dice: random.Random) -> list[bool]:
    """As many left as right."""
    sides = [index % 2 == 0 for index in range(count)]
    dice.shuffle(sides)
    return sides


def duel_pictures(
    policy: Policy,
    duels: Sequence[Duel],
    grid: TimeGrid,
    *,
    solver: str = "euler",
    sampler: Sampler | None = None,
    limit: BatchLimit | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
    check_cancel: CheckCancel = never_cancel,
) -> list[Tensor]:
    """Draw one side of the duels: a picture (H, W, 3) of each. Arguments and errors: see
    :func:`~.sampling.draw`."""
    pictures = draw(
        policy,
        [duel.prompt for duel in duels],
        grid,
        count=1,
        seed=duels[0].seed,
        solver=solver,
        sampler=sampler,
        limit=limit,
        progress=progress,
        check_cancel=check_cancel,
    )
    return [picture[0] for picture in pictures]


def with_answer(duels: Sequence[Duel], number: object, answer: object) -> list[Duel]:
    """Answer one duel.

    Args:
        duels: All duels, in order.
        number: Of the duel, from 1.
        answer: 1 left, 2 right, 0 the same.

    Raises:
        ValueError: There is no such duel or answer, or it was answered otherwise before.
    """
    if type(number) is not int or not 1 <= number <= len(duels):
        raise ValueError(f"duel is {shortened(number)}; it must be a number from 1 to {len(duels)}")
    if type(answer) is not int or answer not in (SAME, LEFT, RIGHT):
        raise ValueError(
            f"answer is {shortened(answer)}; it must be 1 (left), 2 (right) or 0 (the same)"
        )
    before = duels[number - 1].answer
    if before not in (None, answer):
        raise ValueError(f"duel {number} was answered with {before} already; undo that first")
    return [
        replace(duel, answer=answer) if index == number else duel
        for index, duel in enumerate(duels, start=1)
    ]


def without_last_answer(duels: Sequence[Duel]) -> list[Duel]:
    """Take back the answer to the last duel that has one; nothing if there is none.

    Raises:
        ValueError: All are answered, so that it has been told which is which.
    """
    places = [place for place, duel in enumerate(duels) if duel.answer is not None]
    if len(places) == len(duels):
        raise ValueError(
            "all duels are answered, and you know which is which now; draw new ones instead"
        )
    last = places[-1] if places else None
    return [
        replace(duel, answer=None) if place == last else duel for place, duel in enumerate(duels)
    ]


def answered(duels: Sequence[Duel], answers: str) -> tuple[list[Duel], DuelResult]:
    """Take answers.

    Args:
        duels: All duels, in order.
        answers: A digit for each: 1 left, 2 right, 0 the same; spaces and commas do not count.

    Raises:
        ValueError: There is another character, or not one digit for each duel; or all were answered
            otherwise before.
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
    if all(duel.answer is not None for duel in duels) and done != list(duels):
        raise ValueError(
            "these duels were answered otherwise before, and it was told which is which; draw new "
            "ones"
        )
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
    if not isinstance(data, Mapping) or not {"version", "duels"} <= data.keys():
        raise ValueError(
            f"{name} is no file of duels: it must be an object with version and duels; draw new "
            "ones"
        )
    if data["version"] != _VERSION:
        raise ValueError(
            f"{name} is of version {shortened(data['version'])}, and this reads {_VERSION}; draw "
            "new ones"
        )
    rows = data["duels"]
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{name}: duels is {shortened(rows)}; it must be a list; draw new ones")
    return [_duel(row, f"{name}, duel {number}") for number, row in enumerate(rows, start=1)]


def _duel(row: object, where: str) -> Duel:
    names = {field.name for field in fields(Duel)}
    if not isinstance(row, dict) or row.keys() != names:
        raise ValueError(
            f"{where}: it has {shortened(row)}; it must have {', '.join(sorted(names))}; draw new "
            "ones"
        )
    duel = Duel(**row)
    with blaming(where):
        check_settings(duel)
        if duel.answer not in (None, SAME, LEFT, RIGHT):
            raise ValueError(f"answer is {duel.answer}; it must be 1, 2, 0 or none")
    return duel
