"""Prompts with alternatives: ``a {red|blue} __animal__`` becomes several prompts.

    {a|b|c}             one of the alternatives, each equally likely; they may be empty and may hold
                        alternatives themselves. Braces without | stay as they are.
    {3::a|0.5::b|c}     weights: how likely an alternative is; 1 if not written
    {2$$a|b|c}          two different ones in any order, with ", " between them;
    {1-2$$ and $$a|b}   one or two, with " and " between them; {-2$$ and {1-$$ leave an end open
    __name__            one of the lines of a wildcard file (``wildcards.py``)
    {2$$__name__}       two different lines of it
    \\{ \\| \\} \\_ \\${    these characters; any other backslash stays for the text encoder

This is the common part of the syntax of Dynamic Prompts and of the Impact Pack. (Between several
chosen ones Dynamic Prompts writes a comma and the Impact Pack a space.) What only one of them
knows is refused by name, not taken as text: variables ``${c=..}``, quantities ``2#__a__``, ways to
choose ``{~a|b}``, references ``{^1}``, Jinja ``{% %}``.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nlargest

from .files import LONGEST_PROMPT

__all__ = [
    "MOST_VARIANTS",
    "Choice",
    "Template",
    "expand",
    "likely",
    "parse_template",
    "weighed",
]

MOST_VARIANTS = 100_000
"""Prompts that can be made of one template."""

_TOKEN = re.compile(
    r"\\(?P<escaped>[{}|_]|\$(?=\{))"
    r"|__(?P<name>_?[^\s_{}|\\](?:(?:(?!__)[^{}|\\\r\n])*?[^\s{}|\\])??)__"
    r"|(?P<foreign>\$\{|\d+\#(?=__[^\s_])|\{\^\d+\}|\{[~@!](?=[^\W_]|__[^\s_]|\{|\.\d)|\{%)"
    r"|[{}|]|[^\\{}|_$\d]+|.",
    re.DOTALL,
)
_FOREIGN = {
    "$": "begins a variable, and there are none; repeat the choice, or write \\$ for the character",
    "{^": "refers to an earlier choice, which is not possible",
    "{%": "begins a Jinja template, which is not read",
    "{": "is a way to choose (~ @ !) that does not exist here; leave the sign out",
    "#": "is a quantity, and there are none; write {2$$__name__} for two different lines",
}
_HEAD = re.compile(r"\s*(?:(?P<low>\d{1,18})\s*)?(?:(?P<dash>-)\s*(?:(?P<high>\d{1,18})\s*)?)?\$\$")
_WEIGHT = re.compile(r"\s*([-+]?(?:\d[\d.]*|\.\d[\d.]*)(?:[eE][-+]?\d+)?)\s*::")
_COMMA = ", "
_LARGEST_WEIGHT = 1e6
_DEEPEST = 60
"""Choices inside each other, wildcard files included."""
_MOST_AT_ONCE = 50
"""Alternatives that one choice can take together."""
_MOST_WEIGHED = 10_000
"""Alternatives with weights of which several can be taken."""
_TRIES = 100
"""Draws for each prompt that is wanted, before fewer are returned."""
_MOST_WORK = 20_000_000
"""Pieces of text put together in all draws of a template, about."""
_COUNTLESS = 10**12
"""Combinations beyond are not told apart."""


@dataclass(frozen=True)
class Choice:
    """A place where one or several of some templates are put."""

    options: tuple[Template, ...]
    weights: tuple[float, ...] | None = None
    """Of each option, above 0; None if all are equally likely."""
    least: int = 1
    """Options taken together, at least; 0 or more."""
    most: int = 1
    """Options taken together, at most; not more than there are."""
    separator: str = ""
    """Stands between options taken together."""

    @cached_property
    def cumulative(self) -> list[float]:
        """Sums of the weights up to each option."""
        return list(itertools.accumulate(self.weights or ()))

    @cached_property
    def combinations(self) -> int:
        """In how many ways it can be filled, :data:`_COUNTLESS` if in more."""
        counts = list(map(_combinations, self.options))
        if (self.least, self.most) == (1, 1):
            return min(_COUNTLESS, sum(counts))
        if len(counts) > _TRIES * _MOST_AT_ONCE:
            return _COUNTLESS
        # sums[n]: of the products of all sets of n counts.
        sums = [1, *[0] * self.most]
        for count in counts:
            for n in range(self.most, 0, -1):
                sums[n] = min(_COUNTLESS, sums[n] + sums[n - 1] * count)
        orders = range(self.least, self.most + 1)
        return min(_COUNTLESS, sum(math.factorial(n) * sums[n] for n in orders))

    @cached_property
    def size(self) -> int:
        """Characters and pieces that it becomes at most."""
        longest = nlargest(self.most, map(_size, self.options))
        return 1 + sum(longest) + self.most * len(self.separator)

    @cached_property
    def depth(self) -> int:
        """Choices inside each other, this one included."""
        return 1 + max(map(_depth, self.options))


#: Texts and choices, one after the other.
Template = tuple[str | Choice, ...]


def parse_template(text: str, lookup: Callable[[str], Choice]) -> Template:
    """Read a prompt with alternatives.

    Args:
        text: See the top of this file.
        lookup: The choice that a wildcard's name stands for.

    Raises:
        ValueError: Braces do not match, the syntax is one that is not supported, choices are nested
            too deeply, or what they become may be too long.
    """
    # Open groups; the alternatives of each; the texts and choices of each alternative.
    groups: list[list[list[str | Choice]]] = [[[]]]
    for match in _TOKEN.finditer(text):
        token, alternative = match[0], groups[-1][-1]
        if match["escaped"]:
            alternative.append(match["escaped"])
        elif match["name"]:
            alternative.append(lookup(match["name"]))
        elif match["foreign"]:
            _refuse(token, text[match.start() : match.start() + 30])
        elif token == "{":
            groups.append([[]])
            if len(groups) > _DEEPEST:
                raise ValueError(f"choices are nested more than {_DEEPEST} deep")
        elif token == "|" and len(groups) > 1:
            groups[-1].append([])
        elif token == "}":
            if len(groups) == 1:
                raise ValueError(r"'}' closes nothing; write \} for the brace itself")
            inside = _group(list(map(_merged, groups.pop())))
            groups[-1][-1] += inside
        else:
            alternative.append(token)
    if len(groups) > 1:
        raise ValueError(r"'{' is never closed; write \{ for the brace itself")
    return _checked(_merged(groups[0][0]))


def weighed(option: Template) -> tuple[Template, float]:
    """Take the weight off an option, 1 if none is written.

    Raises:
        ValueError: The weight is no number, or out of range; or the option begins with a number of
            options to take, which belongs behind an opening brace.
    """
    if not option or not isinstance(option[0], str):
        return option, 1.0
    if (number := _HEAD.match(option[0])) and number[0].strip() != "$$":
        raise ValueError(f"{number[0].strip()!r} is read directly behind an opening brace alone")
    match = _WEIGHT.match(option[0])
    if match is None:
        return option, 1.0
    return _merged([option[0][match.end() :], *option[1:]]), _weight(match[1])


def likely(options: Sequence[tuple[Template, float]]) -> Choice:
    """Make a choice of options with their weights; those of weight 0 are left out.

    Raises:
        ValueError: None is left.
    """
    kept = [(option, weight) for option, weight in options if weight > 0.0]
    if not kept:
        raise ValueError("all alternatives have the weight 0")
    templates, weights = zip(*kept, strict=True)
    return Choice(templates, None if len(set(weights)) == 1 else weights)


def _group(options: list[Template]) -> Template:
    """What stands between braces, of the templates between its bars."""
    first = options[0][0] if options[0] else None
    number = _HEAD.match(first) if isinstance(first, str) else None
    if number is None or number[0].strip() == "$$" or not isinstance(first, str):
        choice = likely(list(map(weighed, options)))
        is_plain = len(options) == 1 and choice.options == tuple(options)
        return ("{", *options[0], "}") if is_plain else (choice,)
    rest, separator = first[number.end() :], _COMMA
    if "$$" in rest:
        separator, _, rest = rest.partition("$$")
    options = [_merged([rest, *options[0][1:]]), *options[1:]]
    if any("$$" in part for option in options for part in option if isinstance(part, str)):
        raise ValueError(
            f"{number[0].strip()!r} is followed by a '$$' with a choice or a bar before it; only "
            "plain text can stand between the alternatives that are taken"
        )
    return (_several(likely(list(map(weighed, options))), number, separator),)


def _several(choice: Choice, number: re.Match[str], separator: str) -> Choice:
    """Take as many options at once as the head of a group says."""
    head, options, weights = number[0].strip(), choice.options, choice.weights
    if len(options) == 1 and len(options[0]) == 1 and isinstance(options[0][0], Choice):
        inner = options[0][0]  # several lines of one wildcard
        if (inner.least, inner.most) == (1, 1):
            options, weights = inner.options, inner.weights
    low = int(number["low"] or 1)
    high = int(number["high"] or (len(options) if number["dash"] else low))
    if not low <= high <= len(options):
        wanted = low if low == high else f"{low} to {high}"
        raise ValueError(f"{head!r} asks for {wanted} of {len(options)} alternatives")
    if high > _MOST_AT_ONCE:
        raise ValueError(f"{head!r} takes too many at once; at most {_MOST_AT_ONCE}")
    if weights and len(options) > _MOST_WEIGHED:
        raise ValueError(
            f"{head!r} takes several of {len(options):,} alternatives with weights; at most "
            f"{_MOST_WEIGHED:,} are possible"
        )
    return Choice(options, weights, low, high, separator)


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0.0 <= weight <= _LARGEST_WEIGHT:
        raise ValueError(
            f"'{text}::' is no weight of an alternative; it must be a number from 0 to "
            f"{_LARGEST_WEIGHT:,.0f}"
        )
    return weight


def _refuse(token: str, shown: str) -> None:
    kind = next(reason for sign, reason in _FOREIGN.items() if sign in token)
    raise ValueError(f"{shown!r} {kind}")


def _merged(parts: Sequence[str | Choice]) -> Template:
    """Texts that follow one another become one; empty ones are left out."""
    merged: list[str | Choice] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, str) and isinstance(last, str):
            merged[-1] = last + part
        elif part != "":
            merged.append(part)
    return tuple(merged)


def _checked(template: Template) -> Template:
    if _size(template) > LONGEST_PROMPT:
        raise ValueError(f"this may become a prompt of more than {LONGEST_PROMPT:,} characters")
    if _depth(template) > _DEEPEST:
        raise ValueError(f"choices and wildcards are nested more than {_DEEPEST} deep")
    return template


def _combinations(template: Template) -> int:
    combinations = 1
    for part in template:
        if isinstance(part, Choice):
            combinations = min(_COUNTLESS, combinations * part.combinations)
    return combinations


def _size(template: Template) -> int:
    return sum(len(part) + 1 if isinstance(part, str) else part.size for part in template)


def _depth(template: Template) -> int:
    return max((part.depth for part in template if isinstance(part, Choice)), default=0)


def _draw(template: Template, rng: random.Random) -> str:
    return "".join(part if isinstance(part, str) else _drawn(part, rng) for part in template)


def _drawn(choice: Choice, rng: random.Random) -> str:
    if (choice.least, choice.most) == (1, 1):
        if choice.weights is None:
            return _draw(rng.choice(choice.options), rng)
        return _draw(rng.choices(choice.options, cum_weights=choice.cumulative)[0], rng)
    number = rng.randint(choice.least, choice.most)
    places = list(range(len(choice.options)))
    if choice.weights is None:
        chosen = rng.sample(places, number)
    else:
        weights, chosen = list(choice.weights), []
        for _ in range(number):
            index = rng.choices(range(len(places)), weights)[0]
            chosen.append(places.pop(index))
            del weights[index]
    return choice.separator.join(_draw(choice.options[place], rng) for place in chosen)


def _all(template: Template) -> Iterator[str]:
    choices = ([part] if isinstance(part, str) else _all_of(part) for part in template)
    return map("".join, itertools.product(*choices))


def _all_of(choice: Choice) -> Iterator[str]:
    for number in range(choice.least, choice.most + 1):
        for chosen in itertools.permutations(choice.options, number):
            yield from map(choice.separator.join, itertools.product(*map(_all, chosen)))


def expand(template: Template, count: int, rng: random.Random) -> list[str]:
    """Make up to ``count`` different texts.

    All of them, in the order written, if there are no more; otherwise a random choice in which
    every alternative of a group is as likely as its weight says.

    Args:
        template: From :func:`parse_template`.
        count: 1 to :data:`MOST_VARIANTS`.
        rng: Source of the choice.
    """
    if _combinations(template) <= count:
        texts = _all(template)
    else:
        tries = min(count * _TRIES, max(count, _MOST_WORK // _size(template)))
        texts = (_draw(template, rng) for _ in range(tries))
    different: dict[str, None] = {}
    for text in texts:
        different[text] = None
        if len(different) == count:
            break
    return list(different)
