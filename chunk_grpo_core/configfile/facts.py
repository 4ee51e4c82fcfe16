"""What a training depends on beside its settings, from the tables that say what is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["loaded_facts"]


def loaded_facts(tables: Mapping[str, Any]) -> dict[str, object]:
    """What a record's tables say that a training depends on, by dotted key.

    The settings of the first reward are ``reward.1.name``, ``reward.1.weight`` and so on;
    ``rewards`` is how many there are.
    """
    facts = {
        f"{table}.{key}": value
        for table in ("model", "prompts", "run", "plan")
        for key, value in tables.get(table, {}).items()
    }
    rewards = tables.get("reward", ())
    for number, reward in enumerate(rewards, start=1):
        named = {"weight": 1.0, **reward}
        facts |= {f"reward.{number}.{key}": value for key, value in named.items()}
    return {**facts, "rewards": len(rewards)} if rewards else facts
