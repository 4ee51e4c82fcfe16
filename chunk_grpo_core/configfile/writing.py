"""Write a configuration file that says everything, each key with its meaning.

Used for presets (``chunk-grpo presets --write``) and for the copy that a run folder keeps.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..method.schedule import TimeGrid, shifted_grid
from ..models.registry import family_named
from ..presets import PRESETS
from ..rewards import REWARDS
from .keys import Key, keys
from .reading import read_config
from .run_config import RewardEntry, RunConfig

__all__ = ["preset_text", "write_config"]

_WIDTH = 96


def preset_text(preset: str, model: str) -> str:
    """A whole file for a preset, ready to be edited.

    Args:
        preset: A key of :data:`~chunk_grpo_core.presets.PRESETS`.
        model: A key of :data:`~chunk_grpo_core.models.registry.FAMILIES`. ``tiny`` runs as it is;
            of the others, paths must be filled in.

    Raises:
        ValueError: There is no such preset or model.
    """
    family = family_named(model)
    data: dict[str, Any] = {"preset": preset, "model": {"type": model, **family.example}}
    if family.captions is None:
        data["prompts"] = {"file": "prompts.txt"}
    if not family.reward:
        data["reward"] = {"name": "target_colour"}
    return write_config(read_config(data, Path(), preset))


def write_config(config: RunConfig) -> str:
    """Write a file from which :func:`~.reading.read_config` reads the same again."""
    title = PRESETS[config.preset].title if config.preset else "A configuration of chunk-grpo"
    lines = [*_comment(title), *_departures(config.preset)]
    for table, keys_there in keys(type(config.model.table)).items():
        lines += ["", f"[{table}]"] if table else [""]
        for name, value in _values(config, table).items():
            meaning = _meaning(keys_there[name], value, config)
            lines += [*_comment(meaning), f"{name} = {_toml(value)}"]
        if table == "prompts":
            lines += _rewards(config.rewards)
    return "\n".join(lines) + "\n"


def _values(config: RunConfig, table: str) -> dict[str, object]:
    """What stands in a table: every key that has a value."""
    loaded: dict[str, Any] = {
        "model": {"type": config.model.type, **asdict(config.model.table)},
        "prompts": {**asdict(config.prompts), **asdict(config.prompt_config)},
        "grid": _grid(config.settings.grid),
        "plan": asdict(config.plan),
        "run": asdict(config.run),
    }
    if table in loaded:
        return loaded[table]
    settings = config.settings.flat()
    return {name: settings[key.setting] for name, key in keys()[table].items()}


def _grid(grid: TimeGrid) -> dict[str, object]:
    """Steps and shift if they give this grid to the last bit, else its sigmas."""
    t = grid.sigmas[1]
    even = 1.0 - 1.0 / grid.steps
    shift = round(t * (1.0 - even) / (even * (1.0 - t)), 9)
    if shift > 0 and shifted_grid(grid.steps, shift) == grid:
        return {"steps": grid.steps, "shift": shift}
    return {"sigmas": list(grid.sigmas)}


def _meaning(key: Key, value: object, config: RunConfig) -> str:
    """The key's own text, and where a preset has its value from."""
    text = key.doc
    for setting in PRESETS[config.preset].values if config.preset else ():
        is_plan = key.table == "plan" and key.name == "chunks" and setting.key == "plan"
        is_grid = (
            key.table == "grid" and setting.key == "grid" and setting.value == config.settings.grid
        )
        same = setting.key == key.setting and setting.value == value
        if (is_plan and setting.value == value) or is_grid or same:
            text = f"{text} [{setting.source}]".strip()
    return text


def _rewards(entries: tuple[RewardEntry, ...]) -> Iterator[str]:
    yield ""
    yield from _comment(f"What to maximise; one table for each reward: {', '.join(REWARDS)}.")
    for entry in entries:
        yield "[[reward]]"
        for name, value in {"name": entry.name, "weight": entry.weight, **entry.settings}.items():
            yield f"{name} = {_toml(value)}"


def _departures(preset: str) -> Iterator[str]:
    for text in PRESETS[preset].departures if preset else ():
        yield from textwrap.wrap(text, _WIDTH, initial_indent="# - ", subsequent_indent="#   ")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _toml(value: object) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
