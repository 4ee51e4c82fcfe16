"""What is drawn and judged: a prompt with everything that goes with it.

An :class:`Example` goes unchanged from the prompt file to the model, to the reward and to the
events of a training. Whoever takes prompts also takes plain strings: a string is only its text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Example", "Prompt", "examples_of", "is_unicode"]


@dataclass(frozen=True)
class Example:
    """A prompt, what is known about it, and optionally a picture.

    Two examples are equal if text, metadata and picture are.

    Raises:
        ValueError: The text is not a string, the metadata is not what JSON can hold, or one of them
            has half a character, which no file can hold (a lone surrogate).
    """

    text: str = field(compare=False)
    """What the model draws."""
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What rewards may need besides the text, for example ``target_text``; never changed."""
    picture: Path | None = field(default=None, compare=False)
    """A picture that belongs to the prompt."""
    key: str = field(init=False, repr=False)
    """All of it as one string; equal for equal examples, the same on every machine."""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ValueError(f"a prompt is {self.text!r}; it must be a string")
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the prompt {self.text!r:.200} holds half a character (a lone surrogate, "
                f"character {error.start + 1}), which no file can keep; take it out"
            ) from error
        where = f"the metadata of the prompt {self.text!r:.200}"
        if not isinstance(self.metadata, Mapping):
            raise ValueError(f"{where} is {self.metadata!r}; it must be a mapping")
        try:
            metadata = json.dumps(dict(self.metadata), sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{where} cannot be written as JSON: {error}") from error
        picture = None if self.picture is None else Path(self.picture)
        if not is_unicode(json.dumps(json.loads(metadata), ensure_ascii=False)):
            raise ValueError(
                f"{where} holds half a character (a lone surrogate), which no file can keep; take "
                "it out"
            )
        # Read back, so that an example from a record equals the one that was recorded.
        object.__setattr__(self, "metadata", json.loads(metadata))
        object.__setattr__(self, "picture", picture)
        place = None if picture is None else picture.as_posix()
        object.__setattr__(self, "key", json.dumps([self.text, self.metadata, place]))

    @classmethod
    def of(cls, prompt: Prompt) -> Example:
        """An example stays as it is; a string is an example that is only its text."""
        return prompt if isinstance(prompt, Example) else cls(prompt)

    def to_json(self) -> str | dict[str, Any]:
        """For records: the bare text, or a mapping if there is more than text."""
        if not self.metadata and self.picture is None:
            return self.text
        record: dict[str, Any] = {"prompt": self.text}
        if self.metadata:
            record["metadata"] = dict(self.metadata)
        if self.picture is not None:
            record["picture"] = self.picture.as_posix()
        return record

    @classmethod
    def from_json(cls, record: object) -> Example:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        if isinstance(record, str):
            return cls(record)
        if isinstance(record, Mapping):
            entries = dict(record)
            text, metadata = entries.pop("prompt", None), entries.pop("metadata", {})
            picture = entries.pop("picture", None)
            if isinstance(text, str) and isinstance(picture, (str, type(None))) and not entries:
                return cls(text, metadata, None if picture is None else Path(picture))
        raise ValueError(
            f"a recorded prompt is {record!r:.200}; it must be a text, or a mapping with 'prompt', "
            "'metadata' and 'picture'"
        )


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: a lone surrogate is half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


Prompt = str | Example
"""What functions that take a prompt accept."""


def examples_of(prompts: Iterable[Prompt]) -> tuple[Example, ...]:
    """Turn prompts into examples; see :meth:`Example.of`.

    Raises:
        ValueError: ``prompts`` is one string instead of several, or holds something else.
    """
    if isinstance(prompts, (str, Example)):
        raise ValueError(f"prompts is the single prompt {prompts!r}; it must be a list of them")
    return tuple(map(Example.of, prompts))
