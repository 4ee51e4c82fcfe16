"""Write a configuration file that says everything, each key with its meaning.

Used for presets (``chunk-grpo presets --write``) and for the record of a run (``record.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..method.chunks import ChunkPlan
from ..method.schedule import TimeGrid, shifted_grid
from ..models.family import ModelTable
from ..models.registry import FAMILIES, family_named
from ..presets import PRESETS
from ..presets.quick import QUICK
from ..rewards import REWARDS
from ..train.config import TrainConfig
from .keys import Key, keys
from .reading import read_config
from .run_config import RunConfig
from .toml import comment, entry

__all__ = ["plan_as_text", "preset_text", "settings_text", "write_config"]


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
    if preset == QUICK.name:
        data["grid"] = {"steps": family.few_steps, "shift": "model"}
    return write_config(read_config(data, Path(), preset))


def write_config(config: RunConfig) -> str:
    """Write a file from which :func:`~.reading.read_config` reads the same again."""
    return settings_text(config.settings, config.tables(), config.preset)


def settings_text(settings: TrainConfig, tables: Mapping[str, Any], preset: str = "") -> str:
    """Write settings of a training, and what it loads, as a configuration file.

    Args:
        settings: All of them are written.
        tables: What else the file says: ``model``, ``prompts``, ``run``, ``reward`` (a list), and
            ``plan`` as it was written; without it, that of the settings.
        preset: Where values come from, for the comments.
    """
    title = PRESETS[preset].title if preset else "A configuration of chunk-grpo"
    lines = comment(title)
    for note in PRESETS[preset].notes if preset else ():
        lines += comment(f"- {note}", indent="  ")
    flat = settings.flat()
    views = {"plan": plan_as_text(settings.plan), **tables, "grid": _grid(settings.grid)}
    family = FAMILIES.get(tables["model"]["type"])
    for table, table_keys in keys(family.table if family else ModelTable).items():
        of_settings = {name: flat[key.setting] for name, key in table_keys.items() if key.setting}
        values = {**views.get(table, {}), **of_settings}
        if values:
            lines += ["", f"[{table}]"] if table else [""]
        for name, value in values.items():
            text = _meaning(table_keys[name], value, settings, preset) if name in table_keys else ""
            lines += [*comment(text), entry(name, value)]
        if table == "prompts":
            lines += _rewards(tables.get("reward", ()))
    return "\n".join(lines) + "\n"


def plan_as_text(plan: ChunkPlan | None) -> dict[str, object]:
    """A plan as the table [plan] has it."""
    if plan is None:
        return {"chunks": "", "weights": ""}
    weights = "" if plan.weights is None else ", ".join(map(repr, plan.weights))
    return {"chunks": ", ".join(map(str, plan.sizes)), "weights": weights}


def _grid(grid: TimeGrid) -> dict[str, object]:
    """Steps and shift if they give this grid to the last bit, else its sigmas."""
    t = grid.sigmas[1]
    even = 1.0 - 1.0 / grid.steps
    shift = round(t * (1.0 - even) / (even * (1.0 - t)), 9)
    if shift > 0 and shifted_grid(grid.steps, shift) == grid:
        return {"steps": grid.steps, "shift": shift}
    return {"sigmas": list(grid.sigmas)}


def _meaning(key: Key, value: object, settings: TrainConfig, preset: str) -> str:
    """The key's own text, and where a preset has its value from."""
    text = key.doc
    for stated in PRESETS[preset].values if preset else ():
        if key.dotted == "plan.chunks":
            is_source = stated.key == "plan" and stated.value == value
        elif key.table == "grid":
            is_source = stated.key == "grid" and stated.value == settings.grid
        else:
            is_source = stated.key == key.setting and stated.value == value
        if is_source:
            text = f"{text} [{stated.source}]".strip()
    return text


def _rewards(entries: list[Mapping[str, object]]) -> Iterator[str]:
    if not entries:
        return
    yield ""
    yield from comment(f"What to maximise; one table for each reward: {', '.join(REWARDS)}.")
    for reward in entries:
        yield "[[reward]]"
        for name, value in reward.items():
            yield entry(name, value)
