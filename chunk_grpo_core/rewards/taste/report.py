"""How well a head knows its owner, in numbers and in words.

The figure is the share of clicks that the head would have made, too, when they were left out; 50 %
is chance. Its interval is for clicks to come: the share of further clicks of the same person, of
the same kinds and on prompts that nobody clicked on, with which the head fitted on all picks will
agree. It is Wilson's, of as many clicks as they are worth: their number over the dispersion of
random answers (``validation.dispersion``). ``benchmarks/taste`` measures how often it holds.

It is judged at preset numbers of clicks alone (``validation.py``); until then, and as
long as luck cannot be ruled out, the answer is that nobody can tell yet, which is not a no.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .events import Pick

__all__ = ["Agreement", "Look", "Report", "Verdict", "own_agreement", "wilson"]

Verdict = Literal["better than chance", "no sign", "cannot tell yet", "too few to tell"]
_NORMAL_95 = 1.959964
_ENOUGH = 160
"""Clicks after which no difference from chance is called no sign."""
_FEWEST = 40


@dataclass(frozen=True)
class Agreement:
    """A share of clicks with its 95 % interval."""

    agreed: float
    clicks: int
    low: float
    """Of the head: of the share of clicks to come, see the top of this file."""
    high: float

    @property
    def share(self) -> float:
        """NaN without clicks."""
        return self.agreed / self.clicks if self.clicks else math.nan


@dataclass(frozen=True)
class Look:
    """One of the preset numbers of clicks at which it is judged."""

    clicks: int
    chance: float
    """How often random answers agree as well."""
    limit: float
    """Below it, it is no luck."""

    @property
    def passed(self) -> bool:
        """Whether luck was ruled out here."""
        return self.chance <= self.limit


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is known about a head."""

    picks: int
    """That count."""
    kinds: Mapping[str, int]
    agreement: Agreement
    looks: tuple[Look, ...]
    own: Agreement
    """The person's own agreement on duels that were asked again: more is not to be had."""
    curve: tuple[tuple[int, float], ...]
    """Number of the first clicks, and the share of agreement with them alone."""
    reads_captions: bool
    strength: float
    """lambda, over the mean diagonal of the Gram matrix."""
    left_out_by: Literal["prompt", "pick"]
    encoder: str
    most_liked: tuple[str, ...]
    """Hashes of pictures, best first."""
    least_liked: tuple[str, ...]
    disagrees: tuple[str, ...]
    """Ids of picks that it sees otherwise, the clearest first."""
    missing_pictures: int = 0
    """That are gone, so that the picks which show them could not be used."""

    @property
    def verdict(self) -> Verdict:
        """One of four words."""
        if any(look.passed for look in self.looks):
            return "better than chance"
        if self.agreement.clicks < _FEWEST:
            return "too few to tell"
        return "no sign" if self.agreement.clicks >= _ENOUGH else "cannot tell yet"

    def words(self) -> str:
        """The report in a few sentences."""
        clicks = self.agreement.clicks
        if not clicks:
            return f"{self.picks} picks: none of them says which picture is better. Pick some."
        share, low, high = map(
            _percent, (self.agreement.share, self.agreement.low, self.agreement.high)
        )
        where = "prompts" if self.left_out_by == "prompt" else "pictures"
        sentences = [
            f"{self.picks} picks: it agrees with {self.agreement.agreed:g} of your {clicks} "
            f"clicks when they were left out: {share} % (on new {where} {low} to {high} %); chance "
            f"is 50 %. {self._judgement()}"
        ]
        if self.own.clicks:
            sentences.append(
                f"You agreed with yourself in {self.own.agreed:g} of {self.own.clicks} "
                "duels that were asked again; no head can do better."
            )
        if self.left_out_by == "pick":
            sentences.append(
                "The pictures have fewer than five prompts, so clicks were left out one by one; on "
                "new prompts it may do worse."
            )
        if self.missing_pictures:
            sentences.append(
                f"{self.missing_pictures} pictures are gone; picks that show them were left out."
            )
        return " ".join(sentences)

    def to_json(self) -> dict[str, Any]:
        """All of it, with the words."""
        facts = {**asdict(self), "kinds": dict(self.kinds)}
        facts["agreement"]["share"] = self.agreement.share
        return {**facts, "verdict": self.verdict, "words": self.words()}

    def _judgement(self) -> str:
        next_look = next(
            (clicks for clicks in (_FEWEST, 80, _ENOUGH) if clicks > self.agreement.clicks), None
        )
        return {
            "better than chance": "Better than chance.",
            "too few to tell": f"Too few to tell; it is judged from {_FEWEST} clicks on.",
            "cannot tell yet": f"Cannot tell yet; it is judged again at {next_look} clicks.",
            "no sign": "No sign that it understands you.",
        }[self.verdict]


def wilson(agreed: float, clicks: int, effective: float | None = None) -> Agreement:
    """A share with its interval of 95 %.

    Args:
        agreed: How many.
        clicks: Of how many.
        effective: How many independent clicks they are worth; as many as there are by default.

    References:
        Probable inference, the law of succession, and statistical inference (Wilson, 1927).
    """
    if not clicks:
        return Agreement(0.0, 0, 0.0, 1.0)
    n, share = effective or clicks, agreed / clicks
    square = _NORMAL_95**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = _NORMAL_95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Agreement(agreed, clicks, min(low, share), max(high, share))  # but for rounding


def own_agreement(picks: Sequence[Pick]) -> Agreement:
    """How often a duel that was asked again got the same answer."""
    last: dict[tuple[str, ...], str] = {}
    same: Counter[bool] = Counter()
    for pick in picks:
        if pick.kind != "duel":
            continue
        pair = tuple(sorted(shown.picture for shown in pick.shown))
        chosen = pick.shown[pick.answer].picture
        if pair in last:
            same[last[pair] == chosen] += 1
        last[pair] = chosen
    return wilson(same[True], sum(same.values()))


def _percent(share: float) -> int:
    return round(100 * share)
