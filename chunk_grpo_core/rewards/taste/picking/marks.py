"""What stands about the pictures of a batch: the marks that a page draws."""

from __future__ import annotations

from collections.abc import Sequence

from ..events import Pick, Shown, standing
from .batches import Batch, Key

__all__ = ["Marks", "Pair", "keys_of", "pair_of"]

Pair = frozenset[Key]


class Marks:
    """The picks that stand, by the pictures they show."""

    def __init__(self, picks: Sequence[Pick]) -> None:
        """Sort picks, undone ones among them, in the order in which they were made."""
        self.stands = standing(picks)
        self.answered = [pick for pick in self.stands if pick.kind in ("duel", "same")]
        """Duels that were answered, in order."""
        self.asked = {pair_of(pick) for pick in self.stands if pick.kind in _ABOUT_TWO}
        """Pairs that were answered or skipped."""
        self._by_keys: dict[tuple[str, tuple[Key, ...]], list[Pick]] = {}
        self._duels: dict[Key, list[Pick]] = {}
        for pick in self.stands:
            self._by_keys.setdefault((pick.kind, keys_of(pick)), []).append(pick)
        for pick in self.answered:
            self._duels.setdefault(keys_of(pick)[0], []).append(pick)

    def of(self, kind: str, shown: Sequence[Shown]) -> list[Pick]:
        """Picks of a kind that show exactly these pictures, in this order."""
        return self._by_keys.get((kind, tuple((one.picture, one.prompt) for one in shown)), [])

    def hearts(self, batch: Batch) -> list[int]:
        """The mark of each picture: 1 (liked), 0 or -1 (rejected)."""
        if len(batch.shown) == 1:
            likes = self.of("like", batch.shown)
            return [0 if not likes else 1 if likes[-1].answer else -1]
        hearts = self.of("hearts", batch.shown)
        return list(hearts[-1].answer) if hearts else [0] * len(batch.shown)

    def best(self, batch: Batch) -> int | None:
        """Place of the best picture."""
        best = self.of("best", batch.shown)
        return best[-1].answer if best else None

    def stars(self, batch: Batch) -> list[int | None]:
        """1 to 5, -1 (rejected) or None for each picture."""
        stars = [self.of("stars", [shown]) for shown in batch.shown]
        return [given[-1].answer if given else None for given in stars]

    def is_skipped(self, batch: Batch) -> bool:
        """Whether the whole batch was."""
        return bool(self.of("skip", batch.shown))

    def duels(self, batch: Batch) -> list[Pick]:
        """Duels between two pictures of the batch that were answered, in no order."""
        keys = set(batch.keys)
        first = [pick for key in keys for pick in self._duels.get(key, [])]
        return [pick for pick in first if pair_of(pick) <= keys]

    def verdicts(self, batch: Batch) -> list[int]:
        """1 (chosen), 0 or -1 (rejected) for each picture, from all that was picked.

        A heart, being the best, 4 or 5 stars and a duel won count for a picture; a cross, 1 or 2
        stars, rejected stars and a duel lost against it. What prevails decides.
        """
        votes = self.hearts(batch)
        best = self.best(batch)
        if best is not None:
            votes[best] += 1
        for place, stars in enumerate(self.stars(batch)):
            votes[place] += 0 if stars is None else (stars >= 4) - (stars <= 2)
        for pick in self.duels(batch):
            if pick.kind == "duel":
                keys = keys_of(pick)
                votes[batch.keys.index(keys[pick.answer])] += 1
                votes[batch.keys.index(keys[1 - pick.answer])] -= 1
        return [(vote > 0) - (vote < 0) for vote in votes]


_ABOUT_TWO = ("duel", "same", "skip")


def keys_of(pick: Pick) -> tuple[Key, ...]:
    """Picture and prompt of each picture that a pick shows."""
    return tuple((one.picture, one.prompt) for one in pick.shown)


def pair_of(pick: Pick) -> Pair:
    """The same without order."""
    return frozenset(keys_of(pick))
