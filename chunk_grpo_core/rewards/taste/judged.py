"""Picks as prompts that carry judged pictures, for training without a head.

duel, best, hearts    each picture that was preferred, against those that were not (``rows.py``)
like                  the picture, liked or not
stars                 4 and 5 are liked; 1, 2 and -1 are not; 3 says nothing

For ``dpo``, which needs comparisons, each liked picture of a prompt is compared with the disliked
ones of the same prompt. Pictures without a prompt, or of several prompts, teach a model nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ...prompts.example import Example
from ...prompts.judged import Judged, StartingNoise
from .events import TORCH_CPU, Pick, Shown
from .rows import clicks

__all__ = ["judged_examples", "starting_noise"]

_MOST = 4096
"""Largest batch whose noise is drawn again."""


def judged_examples(picks: Iterable[Pick], objective: str) -> list[Example]:
    """Make one prompt of each click.

    Args:
        picks: Those that count, in the order in which they were made.
        objective: dpo or kto.
    """
    examples: list[Example] = []
    singles: dict[str, tuple[list[Shown], list[Shown]]] = {}
    for pick in picks:
        prompts = {shown.prompt for shown in pick.shown}
        if len(prompts) != 1 or "" in prompts:
            continue
        (text,) = prompts
        for better, worse in _sides(pick):
            if better and worse or objective == "kto":
                examples += _example(text, better, worse)
            else:
                liked, disliked = singles.setdefault(text, ([], []))
                liked += better
                disliked += worse
    for text, (liked, disliked) in singles.items():
        for one in liked if disliked else ():
            examples += _example(text, [one], disliked)
    return examples


def _sides(pick: Pick) -> Iterator[tuple[list[Shown], list[Shown]]]:
    """Better and worse pictures of every click of a pick."""
    is_single = len(pick.shown) == 1
    for factors, target in clicks(pick):
        if is_single and pick.kind == "stars":
            target -= 3.0
        marks = [factor * target for factor in factors]
        better = [shown for shown, mark in zip(pick.shown, marks, strict=True) if mark > 0]
        worse = [shown for shown, mark in zip(pick.shown, marks, strict=True) if mark < 0]
        if better or worse:
            yield better, worse


def _example(text: str, better: Sequence[Shown], worse: Sequence[Shown]) -> list[Example]:
    """One prompt; none if a picture is compared with itself alone."""
    names = {shown.picture for shown in better}
    others = [shown for shown in worse if shown.picture not in names]
    if worse and not others:
        return []
    noise = {
        shown.picture: start
        for shown in (*better, *others)
        if (start := starting_noise(shown)) is not None
    }
    judged = Judged(
        better=tuple(shown.picture for shown in better),
        worse=tuple(shown.picture for shown in others),
        noise=noise,
    )
    return [judged.example(text)]


def starting_noise(shown: Shown) -> StartingNoise | None:
    """The noise that a picture began with, where it is known (``Shown.made``) and can be drawn
    again at little cost."""
    seed = shown.made.get("noise_seed", shown.seed)
    index = shown.made.get("noise_index", shown.index)
    is_known = shown.made.get("noise") == TORCH_CPU and type(seed) is int and type(index) is int
    if not is_known or not 0 <= seed < 2**64 or not 0 <= index < _MOST:
        return None
    return StartingNoise(seed, index)
