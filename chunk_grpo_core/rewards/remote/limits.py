"""What one client may ask of a reward server."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["ServerLimits"]


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What one client may ask of a server."""

    batch: int = 64
    """Pictures in a request, at least 1."""
    megabytes: float = 64.0
    """Size of a request's body, above 0."""
    queue: int = 8
    """Requests that wait or are scored at once, at least 1; the next one gets 503."""
    timeout: float = 300.0
    """Seconds from connection to answer, above 0."""

    def __post_init__(self) -> None:
        for name in ("batch", "queue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("megabytes", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
