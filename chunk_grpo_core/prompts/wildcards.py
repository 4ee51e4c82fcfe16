"""Prompts with alternatives: ``a {red|blue} __animal__`` becomes several prompts.

    {a|b|c}    one of the alternatives, each equally likely; they may be empty and may hold
               alternatives themselves. Braces without | stay as they are.
    __name__   one line of <folder>/name.txt, which may hold alternatives and other wildcards;
               folder/name reaches a file in a subfolder
    \\{ \\| \\} \\_  these characters themselves; any other backslash stays for the text encoder

This is the common part of the syntax of Dynamic Prompts and of the Impact Pack. What only one of
them knows (weights ``0.5::a``, several at once ``2$$a``, patterns ``__a*__``) is refused, not
taken as text.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .files import located, parse_lines, read_text

__all__ = ["Choice", "Template", "WildcardFolder", "expand", "parse_template"]

_TOKEN = re.compile(
    r"\\(?P<escaped>[{}|_])|__(?P<name>[\w.*/+-]+?)__|[{}|]|[^\\{}|_]+|.", re.DOTALL
)
_FOREIGN = re.compile(r"\s*(\d+(-\d+)?\$\$|\d*\.?\d+::)")
_TRIES = 100
"""Draws for each prompt that is wanted, before fewer are returned."""
_SHOWN_NAMES = 40


@dataclass(frozen=True)
class Choice:
    """A place where one of several templates is put."""

    options: tuple[Template, ...]

    @cached_property
    def combinations(self) -> int:
        """In how many ways it can be filled."""
        return sum(map(_combinations, self.options))


#: Texts and choices, one after the other.
Template = tuple[str | Choice, ...]


def parse_template(text: str, lookup: Callable[[str], Choice]) -> Template:
    """Read a prompt with alternatives.

    Args:
        text: See the top of this file.
        lookup: The choice that a wildcard's name stands for.

    Raises:
        ValueError: Braces do not match, or the syntax is one that is not supported.
    """
    # Open groups; the alternatives of each; the texts and choices of each alternative.
    groups: list[list[list[str | Choice]]] = [[[]]]
    for match in _TOKEN.finditer(text):
        token, alternative = match[0], groups[-1][-1]
        if match["escaped"]:
            alternative.append(match["escaped"])
        elif match["name"]:
            alternative.append(lookup(match["name"]))
        elif token == "{":
            groups.append([[]])
        elif token == "|" and len(groups) > 1:
            groups[-1].append([])
        elif token == "}":
            if len(groups) == 1:
                raise ValueError(r"'}' closes nothing; write \} for the brace itself")
            choice = _choice(list(map(tuple, groups.pop())))
            is_plain = len(choice.options) == 1
            groups[-1][-1] += ["{", *choice.options[0], "}"] if is_plain else [choice]
        else:
            alternative.append(token)
    if len(groups) > 1:
        raise ValueError(r"'{' is never closed; write \{ for the brace itself")
    return tuple(groups[0][0])


def _choice(options: Sequence[Template]) -> Choice:
    for first in (option[0] for option in options if option):
        if isinstance(first, str) and (match := _FOREIGN.match(first)):
            raise ValueError(
                f"{match[0].strip()!r} is not supported: there are no weights and no choices of "
                "several; repeat an alternative to make it likelier"
            )
    return Choice(tuple(options))


def _combinations(template: Template) -> int:
    return math.prod(part.combinations for part in template if isinstance(part, Choice))


def _draw(template: Template, rng: random.Random) -> str:
    return "".join(
        part if isinstance(part, str) else _draw(rng.choice(part.options), rng) for part in template
    )


def _all(template: Template) -> Iterator[str]:
    choices = (
        [p] if isinstance(p, str) else itertools.chain(*map(_all, p.options)) for p in template
    )
    return map("".join, itertools.product(*choices))


def expand(template: Template, count: int, rng: random.Random) -> list[str]:
    """Make up to ``count`` different texts.

    All of them, in the order written, if there are no more; otherwise a random choice in which
    every alternative of a group is equally likely.

    Args:
        template: From :func:`parse_template`.
        count: At least 1.
        rng: Source of the choice.
    """
    if _combinations(template) <= count:
        texts = _all(template)
    else:
        texts = (_draw(template, rng) for _ in range(count * _TRIES))
    different: dict[str, None] = {}
    for text in texts:
        different[text] = None
        if len(different) == count:
            break
    return list(different)


class WildcardFolder:
    """The lists that ``__name__`` stands for. Every file is read once, when it is asked for."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._read: dict[str, Choice] = {}
        self._open: list[str] = []

    @cached_property
    def files(self) -> dict[str, Path]:
        """Name -> file, by name; empty when there is no such folder."""
        paths = sorted(self.path.rglob("*.txt"))
        return {file.relative_to(self.path).with_suffix("").as_posix(): file for file in paths}

    def lookup(self, name: str) -> Choice:
        """The lines of ``name.txt``.

        Raises:
            ValueError: There is no such file, it is empty, a line of it is wrong, or files name
                each other in a circle.
        """
        if name not in self.files:
            raise ValueError(
                rf"there is no wildcard {name!r}; {self._known()}. Write \__ for underscores that "
                "are no wildcard"
            )
        if name in self._open:
            circle = " -> ".join([*self._open[self._open.index(name) :], name])
            raise ValueError(f"wildcards name each other in a circle: {circle}")
        if name not in self._read:
            self._open.append(name)
            try:
                self._read[name] = self._parse(self.files[name])
            finally:
                self._open.pop()
        return self._read[name]

    def _parse(self, file: Path) -> Choice:
        options = []
        for line in parse_lines(read_text(file), file.name):
            with located(line.where):
                option = parse_template(line.text, self.lookup)
                options += _choice([option]).options
        if not options:
            raise ValueError(f"the wildcard file {file.name} has no lines to choose from")
        return Choice(tuple(options))

    def _known(self) -> str:
        names = list(self.files)
        if not names:
            return f"the folder {self.path.name!r} has no .txt files"
        more = len(names) - _SHOWN_NAMES
        shown = ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
        return f"the folder {self.path.name!r} has: {shown}"
