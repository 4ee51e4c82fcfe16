"""Prompts to train on and prompts to measure on, never the same.

Lines are expanded (wildcards), repetitions dropped, held-out prompts chosen and taken out of the
training prompts, in this order. Two texts count as the same when they differ only in capitals and
white space. Examples with one text and different metadata are different, but never divided between
training and measurement, so that a measurement never sees a text that was trained on.

The split is made after the expansion: one line with alternatives may give prompts of both kinds.
To keep whole lines apart, give the held-out lines in a list of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from .example import Example, examples_of
from .files import MOST_PROMPTS, PromptLine, located
from .template import MOST_VARIANTS, expand, parse_template
from .wildcards import WildcardFolder

__all__ = ["PromptConfig", "PromptSet", "expand_lines", "make_prompt_set"]


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How lines become prompts.

    Raises:
        ValueError: A setting is out of range.
    """

    held_out: int = 8
    """How many prompts to measure on; all of the held-out list if it has fewer. At least 0.
    Prompts with one text and different metadata count as one."""
    held_out_share: float = 0.0
    """Share of the prompts to measure on, rounded, at least one prompt; 0 takes ``held_out``.
    Below 1."""
    split_seed: int = 0
    """Seed of the choice of held-out prompts."""
    variants: int = 1
    """Prompts made of each line with alternatives or wildcards, at most, 100,000 or fewer; 0 leaves
    braces, underscores and backslashes as they are."""
    wildcard_seed: int = 0
    """Seed of the choice of alternatives. Each line has its own random numbers, so that editing
    one line leaves the prompts of the others as they were."""
    shuffle_seed: int = 0
    """Seed of the order of the training prompts; 0 keeps their order."""

    def __post_init__(self) -> None:
        for name in ("held_out", "variants"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.variants > MOST_VARIANTS:
            raise ValueError(f"variants is {self.variants}; at most {MOST_VARIANTS} are made")
        if not 0.0 <= self.held_out_share < 1.0:
            raise ValueError(f"held_out_share is {self.held_out_share}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts of both kinds.

    Raises:
        ValueError: None is left to train on, or a prompt is of both kinds.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    repeated: int = 0
    """Prompts dropped because an earlier one of the same list has the same text and metadata."""
    withheld: int = 0
    """Prompts dropped from training because they are in the held-out list."""

    def __post_init__(self) -> None:
        for name in ("train", "held_out"):
            object.__setattr__(self, name, examples_of(getattr(self, name)))
        if not self.train:
            raise ValueError(
                f"prompts: {len(self.held_out)} held out, and none is left to train on; write more "
                "prompts, one per line, or hold out fewer"
            )
        if both := set(_by_text(self.train)) & set(_by_text(self.held_out)):
            raise ValueError(f"{min(both)!r} is held out and trained on; take it out of one list")


def make_prompt_set(
    lines: Sequence[PromptLine],
    held_out_lines: Sequence[PromptLine] = (),
    config: PromptConfig | None = None,
    wildcards: WildcardFolder | None = None,
) -> PromptSet:
    """Expand, drop repetitions, split, shuffle.

    Args:
        lines: Prompts to train on.
        held_out_lines: Prompts to measure on; none of them is trained on, also those that are not
            chosen. When there are none, held-out prompts are taken out of ``lines``.
        config: Settings; the defaults when None.
        wildcards: What ``__name__`` stands for; no wildcards when None.

    Raises:
        ValueError: A line cannot be expanded, or none is left to train on.
    """
    config = config or PromptConfig()
    train, repeated = _unique(expand_lines(lines, config, wildcards))
    listed, repeated_listed = _unique(expand_lines(held_out_lines, config, wildcards))
    texts = list(_by_text(listed or train).values())
    chosen = random.Random(config.split_seed).sample(texts, _held_out_count(config, len(texts)))
    held_out = tuple(example for same_text in chosen for example in same_text)
    barred = _by_text(listed or held_out)
    kept = [example for example in train if _identity(example.text) not in barred]
    withheld = len(train) - len(kept) if listed else 0
    if config.shuffle_seed:
        random.Random(config.shuffle_seed).shuffle(kept)
    return PromptSet(
        train=tuple(kept),
        held_out=held_out,
        repeated=repeated + repeated_listed,
        withheld=withheld,
    )


def expand_lines(
    lines: Sequence[PromptLine], config: PromptConfig, wildcards: WildcardFolder | None = None
) -> list[PromptLine]:
    """Put alternatives and wildcards in; the prompts of a line keep its metadata.

    Raises:
        ValueError: A line cannot be expanded, or there are too many prompts; the message names file
            and line.
    """
    if config.variants == 0:
        return list(lines)
    lookup = wildcards.lookup if wildcards else _no_wildcards
    prompts = []
    for line in lines:
        rng = random.Random(f"{config.wildcard_seed}/{line.text}")
        with located(line.where):
            texts = [
                text.strip()
                for text in expand(parse_template(line.text, lookup), config.variants, rng)
            ]
            if "" in texts:
                raise ValueError("all of this line is optional; one of its prompts is empty")
            if len(prompts) + len(texts) > MOST_PROMPTS:
                raise ValueError(
                    f"wildcards make more than {MOST_PROMPTS:,} prompts; set variants lower"
                )
        prompts += [replace(line, text=text) for text in texts]
    return prompts


def _no_wildcards(name: str) -> NoReturn:
    raise ValueError(rf"__{name}__ is a wildcard, but there is no folder of wildcards; write \__")


def _identity(text: str) -> str:
    return " ".join(text.casefold().split())


def _unique(lines: Sequence[PromptLine]) -> tuple[list[Example], int]:
    """The first example of each text and metadata, in order; how many others there were."""
    first: dict[str, Example] = {}
    for line in lines:
        with located(line.where):
            same = Example(_identity(line.text), line.metadata).key
            first.setdefault(same, Example(line.text, line.metadata))
    return list(first.values()), len(lines) - len(first)


def _by_text(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Identity of a text -> the examples with that text, in order."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(_identity(example.text), []).append(example)
    return groups


def _held_out_count(config: PromptConfig, available: int) -> int:
    if config.held_out_share and available:
        return max(1, round(config.held_out_share * available))
    return min(config.held_out, available)
