"""JSON that every program can read: NaN and infinities, which JSON does not know, are null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

__all__ = ["strict_json"]


def strict_json(value: object) -> str:
    """Write numbers, texts, lists and mappings on one line.

    Raises:
        TypeError: There is something else in it.
    """
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
