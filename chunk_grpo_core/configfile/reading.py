"""Read a configuration file (TOML): a model, prompts, rewards and a training, strictly.

    preset = "safe-lora"        # fills everything that the file does not say
    iterations = 20             # settings whose names have no dot stand before the first table
    [model] [prompts] [reward] [grid] [plan] [sde] [window] [advantage] [objective] [optimizer]
    [lora] [run]                # their keys: keys.py
    [[reward]]                  # instead of [reward], several of them, each with a weight

The part [record] that the file of a run has besides is not looked at here (``record.py``).

A file is a patch over its preset: dotted keys of ``TrainConfig``, and what is loaded. A key that
does not exist, a value of the wrong type or out of range is an error that names it and what is
allowed. ``writing.py`` writes such files. Relative paths start at the file's folder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ..algorithms import algorithm_of
from ..method.chunks import ChunkPlan, per_step_plan
from ..method.schedule import TimeGrid, shifted_grid
from ..models.registry import FAMILIES, ChosenModel, family_named
from ..presets import PRESETS, preset_values
from ..prompts.split import PromptConfig
from ..rewards import REWARDS, check_reward, paths_of
from ..settings.blaming import blaming
from ..settings.declared import Limits, Range, shortened
from ..train.config import TrainConfig, is_setting
from ..watch.trackers import TRACKERS
from .keys import Key, checked, keys, nearest, tables
from .run_config import GridTable, PlanTable, PromptTable, RewardEntry, RunConfig, RunTable
from .toml import parse_toml, read_toml

__all__ = ["changed", "read_config", "read_config_file", "settings_in"]

_Keys = Mapping[str, Mapping[str, Key]]
_WEIGHT = Limits(float, can_be_none=False, bounds=Range(-1e6, 1e6))
_BALANCE = Limits(float, can_be_none=False, bounds=Range(0, 1))


def read_config_file(path: str | Path, changes: Sequence[str] = ()) -> RunConfig:
    """Read a file.

    Args:
        path: A .toml file.
        changes: Further values that win over the file, as ``KEY=VALUE``; the key is dotted.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, or something in it is wrong; the message names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    document = read_toml(path)
    try:
        return read_config(changed(document, changes), path.resolve().parent, path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_config(data: Mapping[str, Any], folder: Path, name: str) -> RunConfig:
    """Check what a file says and fill in what it does not.

    Args:
        data: Parsed TOML.
        folder: Where relative paths start.
        name: Name of the file, for the run folder.

    Raises:
        ValueError: Something is wrong; the message names it and what is allowed.
    """
    _check_top(data)
    family = family_named(data.get("model", {}).get("type"))
    values = _values(data, keys(family.table), folder)
    preset = data.get("preset", "")
    base = preset_values(preset) if preset else {}
    grid_table = _table(GridTable, values, "grid")
    model = ChosenModel(type=family.name, table=_table(family.table, values, "model"))
    plan = _table(PlanTable, values, "plan")
    plan = replace(plan, chunks=plan.chunks or str(base.get("plan") or ""))
    base_grid = base.get("grid")
    grid = _grid(grid_table, base_grid if isinstance(base_grid, TimeGrid) else None, model)
    steps = grid.trainable_steps
    patch = {**base, **{key: values[key] for key in values if is_setting(key)}, "grid": grid}
    make_plan = per_step_plan if plan.needs_curve else plan.read
    with blaming("[plan]"):
        patch["plan"] = make_plan(steps)
    rewards = data.get("reward") or ({"name": family.reward} if family.reward else None)
    with blaming("[prompts]"):
        prompt_config = _table(PromptConfig, values, "prompts")
    config = RunConfig(
        name=name,
        preset=preset,
        model=model,
        prompts=_prompt_table(values, model, patch.get("algorithm")),
        prompt_config=prompt_config,
        rewards=_rewards(rewards, folder, patch.get("algorithm") != "preference"),
        plan=plan,
        settings=TrainConfig.of(patch),
        run=_table(RunTable, values, "run"),
    )
    algorithm_of(config.settings)  # refuses settings that do not suit it
    if strange := set(config.run.log) - set(TRACKERS):
        raise ValueError(
            f"run.log has {shortened(min(strange))}; it may have {', '.join(TRACKERS)}"
        )
    return config


def settings_in(data: Mapping[str, Any], measured: ChunkPlan | None = None) -> TrainConfig:
    """The settings of parsed TOML that says its own grid and plan, such as the record of a run.

    What is loaded (model, rewards, prompts) is not looked at.

    Args:
        data: The file.
        measured: The plan that [plan] became, where it is read off a curve.

    Raises:
        ValueError: One of them is wrong; the message names it.
    """
    _check_top(data)
    loaded = ("model", "prompts", "run", "reward")
    training = {name: entry for name, entry in data.items() if name not in loaded}
    of_run = {k: v for k, v in data.get("run", {}).items() if is_setting(f"run.{k}")}
    training["run"] = of_run
    values = _values(training, keys(), Path())
    grid = _grid(_table(GridTable, values, "grid"), None, None)
    table = _table(PlanTable, values, "plan")
    with blaming("[plan]"):
        plan = measured or table.read(grid.trainable_steps)
    settings = {key: value for key, value in values.items() if is_setting(key)}
    return TrainConfig.of({**settings, "grid": grid, "plan": plan})


def _check_top(data: Mapping[str, Any]) -> None:
    """Make sure that there is such a preset, and that there are such keys and tables.

    Raises:
        ValueError: Something is wrong.
    """
    preset = data.get("preset", "")
    if not isinstance(preset, str) or (preset and preset not in PRESETS):
        raise ValueError(
            f"there is no preset {shortened(preset)}{nearest(shortened(preset), list(PRESETS))}"
        )
    for name, entry in data.items():
        if name in ("preset", "reward", "record") or name in keys()[""]:
            continue
        if name not in keys():
            raise ValueError(_no_such(name, entry))
        if not isinstance(entry, dict):
            raise ValueError(f"{name} is {shortened(entry)}; it must be a table: [{name}]")


def _values(data: Mapping[str, Any], tables: _Keys, folder: Path) -> dict[str, Any]:
    """Dotted key -> value of the right type, paths made absolute."""
    values: dict[str, Any] = {}
    for table, entries in [("", {n: data[n] for n in data if n in tables[""]}), *data.items()]:
        for name, value in entries.items() if table in tables else ():
            key = tables[table].get(name)
            if key is None:
                where = _where(name, table, tables)
                raise ValueError(f"[{table}] has no key {name:.100}{where}")
            typed = checked(key, value)
            if key.is_path and typed:
                typed = _absolute(str(typed), folder, key.dotted, may_be_name=name == "path")
            values[key.dotted] = typed
    return values


def _no_such(name: str, entry: object) -> str:
    """What is wrong with a name at the top of the file that is neither a key nor a table."""
    if isinstance(entry, (dict, list)):
        return f"there is no table [{name:.100}]{nearest(name, tables())}"
    return f"there is no key {name:.100} at the top of the file{_where(name, '', keys())}"


def _where(name: str, table: str, tables: _Keys) -> str:
    """Where a key belongs that stands in the wrong table, or the nearest key of this one."""
    if table and name in tables[""]:
        return "; write it at the top of the file, before the first table"
    homes = [home for home, there in tables.items() if name in there]
    if homes:
        return f"; it belongs into [{homes[0]}]"
    families = [f.name for f in FAMILIES.values() if name in keys(f.table)["model"]]
    if table == "model" and families:
        return f" for this type of model; it is for {', '.join(families)} (model.type)"
    return nearest(name, ["preset", *tables[""]] if not table else list(tables[table]))


def _absolute(text: str, folder: Path, key: str, *, may_be_name: bool = False) -> str:
    try:
        path = folder / Path(text).expanduser()
        return text if may_be_name and not path.exists() else str(path)
    except (RuntimeError, ValueError, OSError) as error:  # an unknown ~user, a NUL, too long
        raise ValueError(f"{key} is {shortened(text)}, which is no path: {error!s:.120}") from error


def _table(kind: type, values: Mapping[str, Any], table: str) -> Any:
    """Build what a table says from the values under its dotted keys."""
    dotted = {field.name: f"{table}.{field.name}" for field in fields(kind)}
    return kind(**{name: values[key] for name, key in dotted.items() if key in values})


def _prompt_table(values: Mapping[str, Any], model: ChosenModel, algorithm: object) -> PromptTable:
    table = _table(PromptTable, values, "prompts")
    if algorithm == "preference":
        table.check_picks(values.get("preference.picks"))
        return table
    if model.family.captions is None and not table.file and not table.text:
        raise ValueError(
            "prompts.file is missing; name a .txt, .jsonl, .json, .csv or .tsv file of prompts, "
            f"because a model of model.type {model.type} brings none along"
        )
    return table


def _grid(table: GridTable, base: TimeGrid | None, model: ChosenModel | None) -> TimeGrid:
    given = {name for name, value in asdict(table).items() if value not in (0, "", ())}
    if not given and base is not None:
        return base
    if given == {"sigmas"}:
        with blaming("grid.sigmas"):
            return TimeGrid.of(table.sigmas)
    if given != {"steps", "shift"}:
        names = ", ".join(sorted(given)) or "nothing"
        raise ValueError(f"[grid] has {names}; it needs steps and shift, or sigmas alone")
    shift = table.shift
    if isinstance(shift, str) and (shift != "model" or model is None):
        raise ValueError(
            f'grid.shift is {shortened(shift)}; it must be a number, or "model" for the noise '
            "levels that the model itself is sampled with"
        )
    with blaming("[grid]"):
        if isinstance(shift, str) and model:
            return model.family.grid(model.table, table.steps)
        return shifted_grid(table.steps, shift)  # type: ignore[arg-type]


def _rewards(data: object, folder: Path, is_needed: bool) -> tuple[RewardEntry, ...]:
    if not data and not is_needed:
        return ()
    entries = data if isinstance(data, list) else [data]
    if data is None or not entries or not all(isinstance(entry, dict) for entry in entries):
        what = f"is {shortened(data)}; it must be a table" if data else "is missing"
        raise ValueError(f"[reward] {what}; give it a name, one of {', '.join(REWARDS)}")
    rewards = []
    for number, entry in enumerate(entries, start=1):
        with blaming(f"[[reward]] {number}") if len(entries) > 1 else nullcontext():
            rewards.append(_reward(entry, folder))  # type: ignore[arg-type]
    balanced = [reward.name for reward in rewards if reward.balance is not None]
    if len(balanced) > 1:
        raise ValueError(
            f"reward.balance is given to {' and '.join(balanced)}; give it to one of them: it is "
            "its share against all others"
        )
    if balanced and len(rewards) < 2:
        raise ValueError("reward.balance weighs one reward against others; add a second [[reward]]")
    return tuple(rewards)


def _reward(entry: dict[str, Any], folder: Path) -> RewardEntry:
    settings = dict(entry)
    name, weight = settings.pop("name", None), settings.pop("weight", 1.0)
    if not isinstance(name, str) or name not in REWARDS:
        raise ValueError(
            f"reward.name is {shortened(name)}{nearest(shortened(name), list(REWARDS))}"
        )
    balance = settings.pop("balance", None)
    if not _WEIGHT.allow(weight):
        raise ValueError(f"reward.weight is {shortened(weight)}; it must be {_WEIGHT.allowed}")
    if balance is not None and not _BALANCE.allow(balance):
        raise ValueError(f"reward.balance is {shortened(balance)}; it must be {_BALANCE.allowed}")
    if balance is not None and weight != 1.0:
        raise ValueError(
            f"reward.weight is {shortened(weight)} and reward.balance {shortened(balance)}; a "
            "reward with a balance has no weight"
        )
    settings = check_reward(name, settings, key="reward.{name}")
    for setting in paths_of(name) & settings.keys():
        value = settings[setting]
        if value is not None:
            is_list = isinstance(value, list)
            texts = value if is_list else [value]
            paths = [_absolute(str(text), folder, f"reward.{setting}") for text in texts]
            settings[setting] = paths if is_list else paths[0]
    balance = balance if balance is None else float(balance)
    return RewardEntry(name=name, weight=float(weight), settings=settings, balance=balance)


def changed(data: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Apply changes, each ``KEY=VALUE``, to a parsed file; a value is TOML, or else a text.

    Of several rewards, ``reward.2.weight`` is the weight of the second.

    Raises:
        ValueError: One is written otherwise, or cannot be applied.
    """
    data = copy.deepcopy(dict(data))
    for text in changes:
        dotted, equals, value = (part.strip() for part in text.partition("="))
        table, _, key = dotted.rpartition(".")
        if not equals or not key:
            raise ValueError(
                f"{shortened(text)} changes nothing; write KEY=VALUE, such as iterations=20"
            )
        if dotted.partition(".")[0] == "record":
            raise ValueError(
                f"{shortened(text)}: [record] says what was loaded and what changed; "
                "it is no setting"
            )
        _place(data, table, text)[key] = _value(value)
    return data


def _value(text: str) -> object:
    try:
        parsed = parse_toml(f"x = {text}")
    except ValueError:
        return text
    return parsed["x"] if parsed.keys() == {"x"} else text


def _place(data: dict[str, Any], table: str, change: str) -> dict[str, Any]:
    """The table that a change belongs into, made if needed."""
    name, _, number = table.partition(".")
    if not table:
        return data
    if name == "reward" and isinstance(rewards := data.get(name), list):
        number = number or ("1" if len(rewards) == 1 else "")
        if number.isdecimal() and 1 <= int(number[:9]) <= len(rewards):
            place = rewards[int(number) - 1]
        else:
            raise ValueError(
                f"{shortened(change)}: there are {len(rewards)} rewards; write reward.1.KEY=VALUE "
                "for the first"
            )
    else:
        place = data.setdefault(table, {})
    if not isinstance(place, dict):
        raise ValueError(f"{shortened(change)}: {table:.100} is no table; change the file itself")
    return place
