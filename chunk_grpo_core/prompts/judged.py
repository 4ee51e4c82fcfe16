"""What a person said of pictures of one prompt, carried by the prompt itself.

One click is one :class:`~.example.Example`: its text is what the pictures show, and its metadata
name the pictures, by the hashes of their pixels. So the record of a run holds all that it was
trained on, whatever is picked later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .example import Example

__all__ = ["Judged", "StartingNoise"]

_KEY = "judged"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StartingNoise:
    """The noise that a picture began with, as it can be drawn again: on the CPU, by torch, for a
    whole batch at once. That is how ComfyUI draws it."""

    seed: int
    index: int
    """Place of the picture in its batch, from 0."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One click: some pictures are better than others, or good (or bad) without a comparison.

    Raises:
        ValueError: No picture was judged, or one has no hash.
    """

    better: tuple[str, ...] = ()
    """Pictures that were preferred or liked."""
    worse: tuple[str, ...] = ()
    """Pictures that were not preferred, or disliked."""
    noise: Mapping[str, StartingNoise] = field(default_factory=dict)
    """Of those pictures whose noise is known."""

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("no picture was judged; name one in better or in worse")
        for picture in self.pictures:
            if not isinstance(picture, str) or not _HASH.fullmatch(picture):
                raise ValueError(
                    f"a judged picture is {picture!r:.100}; it must be the SHA-256 of its "
                    "pixels, 64 hexadecimal digits"
                )

    @property
    def pictures(self) -> tuple[str, ...]:
        """All of them, the better ones first."""
        return (*self.better, *self.worse)

    @property
    def is_comparison(self) -> bool:
        """Whether a picture was preferred to another one."""
        return bool(self.better and self.worse)

    def example(self, text: str) -> Example:
        """The prompt that carries it."""
        return Example(
            text,
            {
                _KEY: {
                    "better": list(self.better),
                    "worse": list(self.worse),
                    "noise": {name: [one.seed, one.index] for name, one in self.noise.items()},
                }
            },
        )

    @classmethod
    def of(cls, example: Example) -> Judged:
        """What a prompt carries.

        Raises:
            ValueError: It carries nothing of the kind.
        """
        entry: Any = example.metadata.get(_KEY)
        try:
            return cls(
                better=tuple(entry["better"]),
                worse=tuple(entry["worse"]),
                noise={
                    str(name): StartingNoise(int(seed), int(index))
                    for name, (seed, index) in entry.get("noise", {}).items()
                },
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"the prompt {example.text!r:.200} carries no judged pictures; the algorithm "
                "preference trains on prompts made of picks (preference.picks)"
            ) from error
