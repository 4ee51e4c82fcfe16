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
from .events import Pick, Shown
from .rows import clicks

__all__ = ["NOISE", "judged_examples"]

NOISE = "torch-cpu"
"""``made.noise`` of a picture whose noise can be drawn again: by torch on the CPU, with its
``seed``, for the whole batch at once, of which the picture is the one with its ``index``."""
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
        shown.picture: StartingNoise(shown.seed, shown.index)
        for shown in (*better, *others)
        if shown.made.get("noise") == NOISE
        and shown.seed is not None
        and shown.index is not None
        and 0 <= shown.index < _MOST
    }
    judged = Judged(
        better=tuple(shown.picture for shown in better),
        worse=tuple(shown.picture for shown in others),
        noise=noise,
    )
    return [judged.example(text)]
