"""``run.toml``, the one record of a run: a configuration file, and a part ``[record]``.

The file says every setting that is in force. ``[record]`` says what was loaded (model, reward,
prompts), a plan that was read off a curve, and what changed when the run went on. All other files
of a run folder are derived, or are checkpoints.

Whatever stands above ``[record]`` may be edited: whoever resumes the run honours the edit or
refuses it by name (``train/may_change.py``). ``[record]`` itself may not. Digests of both parts, as
they were written, tell whether either was edited.

A run of ComfyUI or of a Python program has the same file; its ``model.type`` says who loads the
model, because no configuration can.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..disk.atomic import write_whole
from ..method.chunks import ChunkPlan
from ..method.sampler import OWN_WALK
from ..prompts.example import Example
from ..prompts.split import PromptSet
from ..train.config import TrainConfig
from ..train.may_change import Change, check_keys, may_change, short
from ..version import __version__
from .facts import loaded_facts
from .reading import changed, read_config, settings_in
from .run_config import RunConfig
from .toml import LONGEST, comment, entry, parse_toml, read_toml, toml_list
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
    "settings_are_edited",
    "settings_in_record",
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
_OF_CURVE = ("sde.", "model.", "prompts.")
_OF_CURVE_TOO = ("grid", "group_size", "seed")
"""What a curve, and so a plan that is read off it, depends on."""


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
    sampler: str = OWN_WALK
    """Name of what made the rollouts; see ``method/sampler.py``."""
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

    Raises:
        ValueError: Something in it cannot be written.
    """
    above = settings_text(settings, tables)
    title = ["", *comment(_MEANING), "[record]"]
    part = _lines(settings, tables, record)
    written = parse_toml("\n".join([above, *title, *part]))
    of_settings = _digest(_above(written))
    digests = {
        "settings": of_settings,
        "record": _record_digest(written["record"], of_settings),
    }
    text = "\n".join([above, *title, entry("digests", digests), *part])
    if len(text.encode()) > LONGEST:
        raise ValueError(
            f"the record of the run would have more than {LONGEST:,} bytes, which nothing would "
            "read again; use fewer or shorter prompts, or less metadata"
        )
    write_whole(folder / RUN_FILE, f"{text}\n")


def _lines(settings: TrainConfig, tables: Mapping[str, Any], record: Record) -> list[str]:
    plan, lines = settings.plan, []
    for name in ("id", "version", "model", "sampler", "reward", "reward_fingerprint"):
        lines.append(entry(name, getattr(record, name)))
    for name in ("train", "held_out"):
        lines.append(f"{name} = {toml_list([_written(item) for item in getattr(record, name)])}")
    if plan and plan.source:
        lines += ["", *comment("The plan, read off a curve."), "[record.plan]"]
        lines.append(entry("written", tables.get("plan") or plan_as_text(plan)))
        lines.append(entry("measured_with", _measured_with(settings, tables)))
        lines += [entry(name, value) for name, value in plan.to_json().items()]
    for change in record.changes:
        lines += ["", "[[record.changes]]"]
        lines += [entry(name, value) for name, value in asdict(change).items()]
    return lines


def _above(document: Mapping[str, Any]) -> dict[str, Any]:
    """What stands above [record]."""
    return {name: value for name, value in document.items() if name != "record"}


def _digest(value: object) -> str:
    body = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _measured_with(settings: TrainConfig, tables: Mapping[str, Any]) -> str:
    """Digest of what the curve of a plan depends on."""
    facts = {**settings.flat(), **loaded_facts(tables)}
    return _digest(
        {
            key: value
            for key, value in facts.items()
            if key in _OF_CURVE_TOO or (key.startswith(_OF_CURVE) and not may_change(key))
        }
    )


def settings_are_edited(document: Mapping[str, Any]) -> bool:
    """Whether what stands above [record] is something else than was written."""
    return document["record"]["digests"]["settings"] != _digest(_above(document))


def _record_digest(record: Mapping[str, Any], settings: object) -> str:
    """Digest of [record], in which that of the settings stands, too."""
    rest = {name: value for name, value in record.items() if name != "digests"}
    return _digest([rest, settings])


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
        ValueError: It is not TOML; or its part ``[record]`` is missing, or was edited.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no run: {RUN_FILE} is missing")
    document = read_toml(file)
    record = document.get("record")
    if not isinstance(record, dict):
        raise ValueError(f"{file} has no part [record]; it is a configuration, not a run")
    digests = record.get("digests")
    if not isinstance(digests, dict) or digests.get("record") != _record_digest(
        record, digests.get("settings")
    ):
        raise ValueError(
            f"{file}: [record] was edited, or damaged; it says what was loaded and what changed, "
            "and only the program may write it. Put it back; or start a new run from this file: "
            f"chunk-grpo train {file} --out ANOTHER_FOLDER"
        )
    if "preset" in document:
        raise ValueError(
            f"{file} has preset = {short(document['preset'])}, but the file of a run says every "
            "setting itself; take the line out, and change single settings"
        )
    return document


def read_record(folder: Path) -> Record:
    """Read the part ``[record]``; see :func:`read_document`."""
    return _record_of(read_document(folder), folder)


def _record_of(document: Mapping[str, Any], folder: Path) -> Record:
    part = document["record"]
    try:
        changes = tuple(Change(**change) for change in part.get("changes", ()))
        names = ("id", "version", "model", "sampler", "reward", "reward_fingerprint")
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
    return settings_in_record(read_document(folder), folder)


def settings_in_record(document: Mapping[str, Any], folder: Path) -> TrainConfig:
    """The settings in a document of :func:`read_document`.

    Raises:
        ValueError: One of them is wrong.
    """
    recorded, table = document["record"].get("plan", {}), document.get("plan")
    is_same = bool(recorded) and table == recorded["written"]
    try:
        return settings_in(document, _plan_of(recorded) if is_same else None)
    except ValueError as error:
        raise ValueError(f"{folder / RUN_FILE}: {error}") from error


def _plan_of(recorded: Mapping[str, Any]) -> ChunkPlan:
    """The plan in [record.plan], with its curve."""
    weights = None if recorded["weights"] == "none" else tuple(recorded["weights"])
    return ChunkPlan.from_json({**recorded, "weights": weights})


def read_run(folder: Path, changes: Sequence[str] = (), *, resumes: bool = False) -> RunConfig:
    """Read the configuration of a run of the command line, with the prompts that it recorded.

    A plan that was read off a curve is kept unless something that the curve depends on is another.

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
    changed_keys = [change.partition("=")[0].strip() for change in changes]
    if resumes:
        check_keys(changed_keys)
    if fixed := [key for key in changed_keys if key.partition(".")[0] in ("preset", "record")]:
        raise ValueError(f"{fixed[0]} cannot be set for a run; change single settings")
    record = _record_of(document, folder)
    try:
        config = read_config(changed(_above(document), changes), folder.resolve(), folder.name)
        config = _with_plan(config, document["record"].get("plan", {}))
    except ValueError as error:
        raise ValueError(f"{folder / RUN_FILE}: {error}") from error
    if any(key.startswith("prompts.") for key in changed_keys):
        return config
    prompts = PromptSet(train=tuple(record.train), held_out=tuple(record.held_out))
    return replace(config, recorded=prompts)


def _with_plan(config: RunConfig, recorded: Mapping[str, Any]) -> RunConfig:
    """The configuration with the plan that was read off a curve, if it would be read off again."""
    is_same = recorded.get("written") == asdict(config.plan)
    measured_with = _measured_with(config.settings, config.tables())
    if not (config.needs_curve and is_same and recorded.get("measured_with") == measured_with):
        return config
    settings = replace(config.settings, plan=_plan_of(recorded))
    return replace(config, settings=settings, is_measured=True)
