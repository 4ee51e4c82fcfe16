"""What GenEval asks of a picture, as its ``evaluation_metadata.jsonl`` writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["COLOURS", "RELATIONS", "TAGS", "Exclude", "Include", "Task", "read_task"]

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True, kw_only=True)
class Include:
    """Objects that must be there."""

    label: str
    """Class, as the detector names it."""
    count: int = 1
    """How many."""
    colour: str | None = None
    """Colour of each of them, one of :data:`COLOURS`."""
    position: tuple[str, int] | None = None
    """Relation of each of them to each object of an earlier entry: name and index of that entry."""


@dataclass(frozen=True, kw_only=True)
class Exclude:
    """Objects that must not be there."""

    label: str
    """Class, as the detector names it."""
    count: int = 1
    """From how many on the picture is wrong."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that is asked of one picture."""

    tag: str
    """One of :data:`TAGS`."""
    include: tuple[Include, ...]
    """At least one."""
    exclude: tuple[Exclude, ...] = ()


def read_task(metadata: Mapping[str, Any]) -> Task:
    """Read one line of GenEval's metadata: ``tag``, ``include`` and, if any, ``exclude``.

    Raises:
        ValueError: Something is missing, or is not what GenEval writes.
    """
    tag = metadata.get("tag")
    if tag not in TAGS:
        raise ValueError(f"tag of the GenEval metadata is {tag!r}; it must be one of {TAGS}")
    include = [_include(entry, index) for index, entry in enumerate(_entries(metadata, "include"))]
    exclude = [
        Exclude(label=_label(entry), count=_count(entry)) for entry in _entries(metadata, "exclude")
    ]
    if not include:
        raise ValueError(f"the GenEval metadata includes no object: {dict(metadata)}")
    for limit in exclude:
        if any(wish.label == limit.label and wish.count >= limit.count for wish in include):
            raise ValueError(f"the GenEval metadata includes and excludes {limit.label}")
    return Task(tag=tag, include=tuple(include), exclude=tuple(exclude))


def _entries(metadata: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    entries = metadata.get(key, ())
    if not isinstance(entries, (list, tuple)) or not all(isinstance(e, Mapping) for e in entries):
        raise ValueError(f"{key} of the GenEval metadata is {entries!r}; it must list mappings")
    return entries


def _include(entry: Mapping[str, Any], index: int) -> Include:
    colour = entry.get("color")
    if colour is not None and colour not in COLOURS:
        raise ValueError(f"color of the GenEval metadata is {colour!r}; it must be in {COLOURS}")
    return Include(
        label=_label(entry),
        count=_count(entry),
        colour=colour,
        position=_position(entry.get("position"), index),
    )


def _position(position: Any, earlier: int) -> tuple[str, int] | None:
    if position is None:
        return None
    if isinstance(position, (list, tuple)) and len(position) == 2:
        relation, index = position
        if relation in RELATIONS and isinstance(index, int) and 0 <= index < earlier:
            return relation, index
    raise ValueError(
        f"position of the GenEval metadata is {position!r}; it must be one of {RELATIONS} and the "
        "index of an earlier object"
    )


def _label(entry: Mapping[str, Any]) -> str:
    label = entry.get("class")
    if not isinstance(label, str):
        raise ValueError(f"class of the GenEval metadata is {label!r}; it must be a name")
    return label


def _count(entry: Mapping[str, Any]) -> int:
    count = entry.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count of the GenEval metadata is {count!r}; it must be 1 or more")
    return count
