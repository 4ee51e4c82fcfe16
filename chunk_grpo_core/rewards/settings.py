"""Settings of a reward as people write them: ``version=2.0``, one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

__all__ = ["reward_settings"]


def reward_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` with a VALUE in JSON, or else a text. Spaces around both are dropped.

    Raises:
        ValueError: There is no ``=``, KEY is not a name, or it was given twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not (key.isidentifier() and equals):
            raise ValueError(f"setting is {pair!r}; write KEY=VALUE")
        if key in settings:
            raise ValueError(f"setting {key} was given twice")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings
