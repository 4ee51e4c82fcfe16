"""Runs on disk with which no model was loaded, and edits of their records."""

from __future__ import annotations

import json

from environment import package
from fakes import curve_of

from chunk_grpo_core.configfile.facts import loaded_facts
from chunk_grpo_core.configfile.reading import read_config
from chunk_grpo_core.configfile.record import Record, read_document, write_run
from chunk_grpo_core.configfile.toml import entry
from chunk_grpo_core.prompts.example import examples_of
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.checkpoint import Checkpoint, TrainingState

DONE = 3
"""Iterations of the runs here."""
FILES = {
    "tiny": {"model": {"type": "tiny"}},
    "flux": {
        "model": {"type": "flux", "path": "somebody/flux", "width": 64, "height": 64},
        "prompts": {"file": "prompts.txt"},
    },
}
COMMON = {
    "iterations": DONE,
    "grid": {"steps": 5, "shift": 2.0},
    "plan": {"chunks": "cut 4"},
    "noise": "drawn",
    "reward": [
        {"name": "jpeg_compressibility", "weight": 0.5, "quality": 90},
        {"name": "clipscore", "path": "/files/clip", "batch_size": 2, "device": "cpu"},
    ],
}


def save_run(folder, family):
    """A run of the command line that has a checkpoint, with nothing loaded."""
    config = read_config({**COMMON, **FILES[family]}, folder, "mine")
    settings = config.train_config(curve_of(0.7, 0.2, 0.2, 0.1, sigmas=config.settings.grid.sigmas))
    record = Record(
        model="m",
        reward="r",
        reward_fingerprint={"f": 1},
        train=examples_of(["a", "b"]),
        held_out=examples_of(["c", "d"]),
    )
    write_run(folder, settings, config.tables(), record)
    facts = {"model": "m", "reward": "r", "reward_fingerprint": {"f": 1}}
    trained = {**settings.flat(), **loaded_facts(config.tables()), **facts}
    state = TrainingState(DONE, json.loads(json.dumps(trained)))
    package("safetensors")
    RunFolder(folder).checkpoints.save(Checkpoint(state, {}, {}))
    return settings


def write_document(folder, document):
    """Write TOML whose parsed form is this."""
    rewards = document.get("reward")
    is_list = isinstance(rewards, list) and all(isinstance(item, dict) for item in rewards)
    document = {name: value for name, value in document.items() if not is_list or name != "reward"}
    plain = {name: value for name, value in document.items() if not isinstance(value, dict)}
    lines = [entry(name, value) for name, value in plain.items()]
    for name, value in document.items():
        if isinstance(value, dict):
            lines += [f"[{name}]", *(entry(key, item) for key, item in value.items())]
    for reward in rewards if is_list else ():
        lines += ["[[reward]]", *(entry(key, item) for key, item in reward.items())]
    (folder / "run.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def edited(folder, key, value):
    """Edit one key of the record, by its dotted name."""
    document = read_document(folder)
    *path, name = key.split(".")
    place = document
    for part in path:
        place = place[int(part) - 1] if part.isdecimal() else place[part]
    assert place[name] != value
    place[name] = value
    write_document(folder, document)


def all_keys(document, prefix=""):
    for name, value in document.items():
        if name == "reward" and isinstance(value, list):
            for number, reward in enumerate(value, start=1):
                yield from all_keys(reward, f"reward.{number}.")
        elif isinstance(value, dict) and prefix in ("", "record."):
            yield from all_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
