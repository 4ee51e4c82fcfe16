"""One test about many files or nodes: what is wrong with each of them, all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Name = TypeVar("Name")


def failures_of_each(check: Callable[[Name], object], names: Iterable[Name]) -> dict[Name, str]:
    """Call ``check`` with every name; return name -> message for those it fails on."""
    failures = {}
    for name in names:
        try:
            check(name)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    return failures
