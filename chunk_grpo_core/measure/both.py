"""The model without its LoRA, then with it: the same work on both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from ..method.policy import Policy, base_model

__all__ = ["BASE", "LORA", "Side", "on_both_sides", "sides_of"]

T = TypeVar("T")
P = TypeVar("P", bound=Policy)

BASE, LORA = "base model", "with LoRA"
"""Names of the sides, for people."""
Side = tuple[str, AbstractContextManager[P]]
"""Its name, and the policy for as long as it works."""


def sides_of(policy: P) -> tuple[Side[P], Side[P]]:
    """A policy with its adapter off, and with it as it is."""
    return (BASE, _without_adapter(policy)), (LORA, nullcontext(policy))


def on_both_sides(
    sides: Iterable[Side[P]],
    work: Callable[[P, Callable[[float], None]], T],
    progress: Callable[[str, float], None] = lambda side, fraction: None,
) -> tuple[T, T]:
    """Do the same on both sides, one after the other.

    Args:
        sides: Two of them, the base first.
        work: Gets the policy, and a function that is called with the fraction done.
        progress: Called with the name of the side and the fraction done.

    Returns:
        What ``work`` gave for the base, and for the other side.
    """

    def of_side(name: str, side: AbstractContextManager[P]) -> T:
        with side as policy:
            return work(policy, lambda fraction: progress(name, fraction))

    base, other = (of_side(*side) for side in sides)
    return base, other


@contextmanager
def _without_adapter(policy: P) -> Iterator[P]:
    with base_model(policy):
        yield policy
