"""Who an error is about, said by the caller who knows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["blaming"]


@contextmanager
def blaming(source: object) -> Iterator[None]:
    """Begin the message of an error with what the user gave: a file, a table, an input's name.

    Raises:
        ValueError: One was raised inside, of this class or one below it.
        FileNotFoundError: One was raised inside.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
