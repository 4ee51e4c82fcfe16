"""Training algorithms, one file each.

Here: what an algorithm needs of a rollout, what it makes of the scores, the gradient of one group,
its numbers; and the list of all of them. Not here: the loop, the optimiser, memory, files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..settings.declared import shortened
from .algorithm import Algorithm
from .chunk_grpo import ChunkGrpo
from .forward import Forward
from .preference import Preference

__all__ = ["ALGORITHMS", "algorithm_of", "name_of"]

ALGORITHMS: dict[str, Callable[[Any], Algorithm[Any, Any]]] = {
    "chunk_grpo": ChunkGrpo,
    "forward": Forward,
    "preference": Preference,
}
"""Value of the setting ``algorithm`` -> what makes one from a TrainConfig, or refuses it."""


def algorithm_of(config: Any) -> Algorithm[Any, Any]:
    """Build the algorithm that a TrainConfig names.

    Raises:
        ValueError: There is none of this name, or the settings do not suit it.
    """
    if config.algorithm not in ALGORITHMS:
        names = ", ".join(ALGORITHMS)
        raise ValueError(f"algorithm is {shortened(config.algorithm)}; it must be one of {names}")
    return ALGORITHMS[config.algorithm](config)


def name_of(algorithm: Algorithm[Any, Any]) -> str:
    """Name of an algorithm for records: that of its setting, or of its class."""
    kind = type(algorithm)
    return next((name for name, made in ALGORITHMS.items() if made is kind), kind.__qualname__)
