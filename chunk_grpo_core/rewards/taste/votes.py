"""Votes as the only reward: each group that was sampled is shown to a person, who clicks.

    heart 1, no mark 0, cross -1        best 1, the others 0
    a duel won 1, lost -1, neither 0    stars (n - 3) / 2, rejected -1.5

The number of a picture is the mean of what stands about it. A picture about which nothing was said
has none; a group about which nothing was said has 0 for each picture, and teaches nothing. The
clicks are ordinary picks of a taste, so that a head can be fitted to them later, and the same
pictures are never asked about twice.

Legend: B pictures, n pictures of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...method.asking import Person
from ...method.reward import Fingerprint, RewardBatch, checked_inputs
from ...prompts.example import Prompt
from .asking import answer
from .events import Pick
from .picking.batches import keep_batches
from .picking.marks import Marks, keys_of
from .picks import Taste, pixel_hash

__all__ = ["VotesReward", "load_votes", "votes_about"]

_VERSION = 1
"""Of the numbers at the top of this file."""


class VotesReward:
    """Asks a person, if there is one; otherwise it says what was said before."""

    name = "votes"
    groupwise = True
    """A group is shown as a whole, whatever its order."""
    is_remote = True
    """Each question costs somebody else something."""

    def __init__(self, taste: Taste, kind: str = "hearts", person: Person | None = None) -> None:
        """Keep the clicks in a taste.

        Args:
            taste: Its folder need not exist.
            kind: One of ``WAYS``: how a group is shown first.
            person: Who is asked; see :meth:`asking`.
        """
        self.taste, self.kind, self._person = taste, kind, person

    @property
    def fingerprint(self) -> Fingerprint:
        """See :class:`~chunk_grpo_core.method.reward.Reward`; who votes is not in it."""
        return {"votes": _VERSION}

    def asking(self, person: Person) -> VotesReward:
        """See :class:`~chunk_grpo_core.method.asking.Asks`."""
        return VotesReward(self.taste, self.kind, person)

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`. Pictures of one prompt are shown
        together.

        Raises:
            ValueError: The file of picks holds a line that is none.
            Exception: Whatever cancels the training while the person is asked.
        """
        images, examples = checked_inputs(images, examples)
        values = torch.full((len(images),), torch.nan)
        groups: dict[str, list[int]] = {}
        for place in images.isfinite().flatten(1).all(1).nonzero().flatten().tolist():
            groups.setdefault(examples[place].text, []).append(place)
        for text, places in groups.items():
            names = [pixel_hash(images[place]) for place in places]
            # In an order of their own, so that the same pictures are always one question.
            first = {name: place for name, place in zip(names[::-1], places[::-1], strict=True)}
            numbers = self._numbers(text, {name: images[first[name]] for name in sorted(first)})
            for name, place in zip(names, places, strict=True):
                values[place] = numbers.get(name, torch.nan)
        batch = RewardBatch.of(values)
        if self._person is None and not batch.valid.any():
            told = "nobody is asked outside a training, and nothing was said about these pictures"
            return RewardBatch.failed(len(images), told)
        return batch

    def _numbers(self, text: str, pictures: Mapping[str, Tensor]) -> dict[str, float]:
        if self._person is None:
            return votes_about(pictures, text, self.taste.picks())
        if len(pictures) < 2:  # all alike
            return dict.fromkeys(pictures, 0.0)
        batches = keep_batches(
            self.taste,
            torch.stack(list(pictures.values())),
            [text] * len(pictures),
            kind=self.kind,
        )
        picks = answer(self.taste, batches, self._person, kind=self.kind, why="votes")
        return votes_about(pictures, text, picks) or dict.fromkeys(pictures, 0.0)


def votes_about(names: Mapping[str, Tensor], text: str, picks: Sequence[Pick]) -> dict[str, float]:
    """Hash of a picture -> mean of what was said about it, of those about which something was.

    Args:
        names: Hashes of pictures that were made of one prompt.
        text: The prompt.
        picks: In the order in which they were made, undone ones among them.
    """
    about: dict[str, list[float]] = {}
    for pick in Marks(picks).stands:
        keys = keys_of(pick)
        if not all(prompt == text and name in names for name, prompt in keys):
            continue
        for (name, _), number in zip(keys, _said(pick), strict=False):
            about.setdefault(name, []).append(number)
    return {name: sum(numbers) / len(numbers) for name, numbers in about.items()}


def _said(pick: Pick) -> list[float]:
    """What a pick says of each of its pictures; nothing of a skip."""
    count = len(pick.shown)
    if pick.kind == "hearts":
        return [float(mark) for mark in pick.answer] if any(pick.answer) else []
    if pick.kind == "like":
        return [1.0 if pick.answer else -1.0]
    if pick.kind == "best":
        return [float(place == pick.answer) for place in range(count)]
    if pick.kind == "duel":
        return [1.0 if place == pick.answer else -1.0 for place in range(count)]
    if pick.kind == "same":
        return [0.0] * count
    if pick.kind == "stars":
        return [(max(pick.answer, 0) - 3.0) / 2.0]
    return []


def load_votes(
    picks: str | Path | Taste, kind: Literal["hearts", "best", "duels", "stars"] = "hearts"
) -> VotesReward:
    """Load votes.

    Args:
        picks: Folder of a taste, which need not exist: the clicks go there.
        kind: How a group is shown first; the person may answer otherwise.
    """
    return VotesReward(picks if isinstance(picks, Taste) else Taste(picks), kind)
