"""``run.toml``, the one record of a run: a configuration file, and a part ``[record]``.

The file says every setting that is in force. ``[record]`` says what was loaded (model, reward,
prompts), a plan that was read off a curve, and what changed when the run went on. All other files
of a run folder are derived, or are checkpoints.

A run of ComfyUI or of a Python program has the same file; its ``model.type`` says who loads the
model, because no configuration can.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..disk.atomic import write_whole
from ..method.chunks import ChunkPlan
from ..prompts.example import Example
from ..prompts.split import PromptSet
from ..train.config import TrainConfig
from ..train.may_change import Change, check_keys
from ..version import __version__
from .reading import changed, read_config, settings_in
from .run_config import RunConfig
from .toml import comment, entry, parse_toml, toml_list
from .writing import plan_as_text, settings_text

__all__ = [
    "COMFYUI",
    "PYTHON",
    "RUN_FILE",
    "Record",
    "new_run_id",
    "read_document",
    "read_record",
    "read_run",
    "read_settings",
    "write_run",
]

RUN_FILE = "run.toml"
COMFYUI: dict[str, dict[str, object]] = {"model": {"type": "comfyui"}}
"""Tables of a run whose model is a MODEL of ComfyUI."""
PYTHON: dict[str, dict[str, object]] = {"model": {"type": "python"}}
"""Tables of a run whose model is an object of a Python program."""
_MEANING = (
    "What was loaded, and what changed when the run went on. Written by chunk-grpo; edit what "
    "stands above."
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The part ``[record]``."""

    model: str
    """Name of the model."""
    reward: str
    """Name of the reward."""
    reward_fingerprint: Mapping[str, object]
    train: Sequence[Example]
    """Prompts to train on."""
    held_out: Sequence[Example]
    """Prompts to measure on."""
    changes: tuple[Change, ...] = ()
    """What was changed on the way, oldest first."""
    version: str = __version__
    """Version of the program that wrote it."""
    id: str = field(default_factory=lambda: new_run_id())
    """Which run this is, made up when it begins; its checkpoints bear it."""


def new_run_id() -> str:
    """Make an id up: 16 random hexadecimal digits."""
    return secrets.token_hex(8)


def write_run(
    folder: Path, settings: TrainConfig, tables: Mapping[str, Any], record: Record
) -> None:
    """Write ``run.toml``, in one piece.

    Args:
        folder: Run folder; made if needed.
        settings: Those in force.
        tables: See :func:`~.writing.settings_text`.
        record: The rest.
    """
    text = settings_text(settings, tables) + "\n".join(_lines(settings.plan, tables, record))
    write_whole(folder / RUN_FILE, f"{text}\n")


def _lines(plan: ChunkPlan | None, tables: Mapping[str, Any], record: Record) -> list[str]:
    lines = ["", *comment(_MEANING), "[record]"]
    for name in ("id", "version", "model", "reward", "reward_fingerprint"):
        lines.append(entry(name, getattr(record, name)))
    for name in ("train", "held_out"):
        lines.append(f"{name} = {toml_list([_written(item) for item in getattr(record, name)])}")
    if plan and plan.source:
        lines += ["", *comment("The plan, read off a curve."), "[record.plan]"]
        lines.append(entry("written", tables.get("plan") or plan_as_text(plan)))
        lines += [entry(name, value) for name, value in plan.to_json().items()]
    for change in record.changes:
        lines += ["", "[[record.changes]]"]
        lines += [entry(name, value) for name, value in asdict(change).items()]
    return lines


def _written(example: Example) -> object:
    """A prompt as TOML: text, or a table; as JSON if it has a null, which TOML does not know."""
    value = example.to_json()
    body = json.dumps(value, ensure_ascii=False)
    return {"json": body} if "null" in body and not isinstance(value, str) else value


def _read(value: Any) -> Example:
    is_json = isinstance(value, dict) and value.keys() == {"json"}
    return Example.from_json(json.loads(value["json"]) if is_json else value)


def read_document(folder: Path) -> dict[str, Any]:
    """Parse the ``run.toml`` of a folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not TOML, or has no part ``[record]``.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no run: {RUN_FILE} is missing")
    try:
        document = parse_toml(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(document.get("record"), dict):
        raise ValueError(f"{file} has no part [record]; it is a configuration, not a run")
    return document


def read_record(folder: Path) -> Record:
    """Read the part ``[record]``; see :func:`read_document`."""
    part = read_document(folder)["record"]
    try:
        changes = tuple(Change(**change) for change in part.get("changes", ()))
        names = ("id", "version", "model", "reward", "reward_fingerprint")
        return Record(
            **{name: part[name] for name in names},
            train=tuple(map(_read, part["train"])),
            held_out=tuple(map(_read, part["held_out"])),
            changes=changes,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / RUN_FILE}: [record] is broken ({error!r})") from error


def read_settings(folder: Path) -> TrainConfig:
    """Read the settings of a run, whoever runs it; see :func:`read_document`."""
    document = read_document(folder)
    try:
        return settings_in(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / RUN_FILE} is broken: {error}") from error


def read_run(folder: Path, changes: Sequence[str] = (), *, resumes: bool = False) -> RunConfig:
    """Read the configuration of a run of the command line, with the prompts that it recorded.

    Args:
        folder: Run folder.
        changes: Further values that win over the file, as ``KEY=VALUE``.
        resumes: Let only those change that may when a run goes on.

    Raises:
        FileNotFoundError: There is no run.
        ValueError: Something in it is wrong, a key may not change, or the run belongs to ComfyUI
            or to a Python program.
    """
    document = read_document(folder)
    kind = document.get("model", {}).get("type") if isinstance(document.get("model"), dict) else ""
    if kind == "comfyui":
        raise ValueError(
            f"{folder} is a run of ComfyUI, and chunk-grpo cannot load its MODEL; go on there, "
            f"with run_name {folder.name} and resume on in Train LoRA, or with Evaluate LoRA"
        )
    if kind == "python":
        raise ValueError(
            f"{folder} is a run of a Python program, and chunk-grpo cannot load its model; go on "
            "there, with resume=True of run_experiment"
        )
    if resumes:
        check_keys([change.partition("=")[0].strip() for change in changes])
    record = read_record(folder)
    try:
        config = read_config(changed(document, changes), folder.resolve(), folder.name)
        if any(change.strip().startswith("prompts.") for change in changes):
            return config
        prompts = PromptSet(train=tuple(record.train), held_out=tuple(record.held_out))
        return replace(config, recorded=prompts)
    except ValueError as error:
        raise ValueError(f"{folder / RUN_FILE}: {error}") from error
