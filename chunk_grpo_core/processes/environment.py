"""What a launcher says in the environment, read without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["is_launched"]


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started more than this process."""
    return int(environment.get("WORLD_SIZE", "1")) > 1
