"""Configuration files: their values, their text, and ``--set``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from chunk_grpo_core.configfile.toml import toml_value

from ..compare import record_of
from ..material import BASE, Material, as_toml, put
from ..mutate import damaged_bytes
from ..outcomes import Case, Expected
from ..values import FLUX, KEYS, nonsense_for, sane_for
from ..warm import Ended

__all__ = ["changes", "in_record", "models", "texts", "train", "values"]


def train(
    folder: Path,
    text: str | bytes,
    about: str,
    names: tuple[str, ...],
    *more: str,
    expected: Expected = Expected.either,
    wanted: dict[str, Any] | None = None,
) -> Case:
    """A training from a configuration with this text; ``wanted`` must stand in its record."""
    body = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    (folder / "config.toml").write_bytes(body)

    def check(place: Path, ended: Ended) -> str:
        return in_record(place / "run", wanted or {})

    return Case(
        argv=("train", "config.toml", "--out", "run", "--json", *more),
        about=about,
        names=names,
        expected=expected,
        check=check,
    )


def in_record(run: Path, wanted: dict[str, Any]) -> str:
    """What of ``wanted`` (dotted key -> value) the record of a run does not say."""
    record = record_of(run)
    for dotted, value in wanted.items():
        table, _, key = dotted.rpartition(".")
        place = record.get(table, {}) if table else record
        if dotted in ("grid.steps", "grid.shift") and key not in place:  # its sigmas are written
            if key == "steps" and len(place["sigmas"]) != value + 1:
                return f"run.toml has {len(place['sigmas'])} sigmas for {value} steps"
            continue
        if key not in place:
            return f"run.toml says nothing of {dotted}"
        if key in place and place[key] != value:
            return f"run.toml says {dotted} = {place[key]!r}, not {value!r}"
    return ""


def values(rng: random.Random, folder: Path, material: Material) -> Case:
    """One or two values of a file: nonsense, or sane ones."""
    names = rng.sample(sorted(KEYS), rng.choice([1, 1, 2]))
    if rng.random() < 0.6:
        bad = {name: nonsense_for(KEYS[name], rng) for name in names}
        return train(
            folder,
            as_toml(put(BASE, bad)),
            _shown(bad),
            _as_said(*names),
            expected=Expected.refused,
        )
    good = {name: sane_for(KEYS[name], rng) for name in names}
    return train(
        folder,
        as_toml(put(BASE, good)),
        _shown(good),
        _as_said(*names),
        expected=_fits(good),
        wanted=good,
    )


def models(rng: random.Random, folder: Path, material: Material) -> Case:
    """The table of a real model, with nonsense in it."""
    name = rng.choice(sorted(FLUX))
    value = nonsense_for(FLUX[name], rng)
    (folder / "prompts.txt").write_text("a cat\na dog\na bird\n")
    model = {"type": "flux", "path": "model"}
    tables = {**BASE, "model": model, "prompts": {"file": "prompts.txt", "held_out": 2}}
    data = put(tables, {"reward.name": "brightness", name: value})
    names = (*_as_said(name), "model.path")  # the folder of the pipeline is not there
    if isinstance(value, str) and len(value) > 2:
        names += (repr(value)[1:-1],)
    return train(folder, as_toml(data), _shown({name: value}), names, expected=Expected.refused)


def _fits(good: dict[str, Any]) -> Expected:
    """Two values that are sane alone may not suit each other, and noise in a window needs one."""
    is_alone = len(good) == 1 and good.get("noise") != "window"
    return Expected.accepted if is_alone else Expected.either


def _as_said(*names: str) -> tuple[str, ...]:
    """Dotted keys, and as a message about a table names them."""
    tables = (name.rpartition(".") for name in names)
    return (*names, *(f"[{table}]: {key}" for table, _, key in tables if table))


def _shown(changed: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r:.60}" for name, value in changed.items())


def changes(rng: random.Random, folder: Path, material: Material) -> Case:
    """``--set KEY=VALUE`` on a good file: any key, any value, any spelling."""
    name = rng.choice(sorted(KEYS))
    kind = rng.randrange(5)
    if kind == 0:
        value = sane_for(KEYS[name], rng)
        text, expected, wanted = f"{name}={toml_value(value)}", _fits({name: value}), {name: value}
    elif kind == 1:
        value = nonsense_for(KEYS[name], rng)
        text, expected, wanted = f"{name}={toml_value(value)}", Expected.refused, {}
    else:
        text, wanted = rng.choice(_ODD_CHANGES).replace("KEY", name), {}
        expected = Expected.refused
    if "\0" in text:
        text = text.replace("\0", "\\u0000")
    dotted, _, value = text.partition("=")
    table, _, key = dotted.strip().rpartition(".")
    of_file = ("prompts",) if dotted == "prompts.text" else ()
    of_file += (value,) if dotted in ("prompts.file", "run.continue_from") else ()
    reward = {"reward.name": "brightness"} if dotted == "reward.weight" else {}
    return train(
        folder,
        as_toml(put(BASE, reward)),
        f"--set {text:.80}",
        (
            *_as_said(dotted),
            repr(text)[1:20],
            f"[{table}] has no key {key}",
            f"no table [{table}]",
            *of_file,
        ),
        "--set",
        text,
        expected=expected,
        wanted=wanted,
    )


_ODD_CHANGES = (
    "KEY",
    "KEY=",
    "=3",
    "KEY==3",
    "KEYY=1",
    "a.KEY=1",
    "KEY.x=1",
    "KEY=[1,",
    "KEY={a=",
    "KEY=1 2",
    "..=1",
    ".=1",
    "KEY=" + "[" * 3000,
    "KEY=" + "9" * 5000,
    "model=3",
    "model.type=flux",
    "model.type=nope",
    "model.type=3",
    "model.type=",
    "optimizer=3",
    "optimizer=adamw",
    "grid=[1, 0.5, 0]",
    "plan=step",
    "plan.chunks=3",
    "reward.name=nope",
    "reward.name=5",
    "reward=5",
    "reward.weight=nan",
    "reward.name=brightness\x1b[31m",
    "preset=nope",
    "preset=3",
    "record.model=x",
    "prompts.text=a red circle",
    "prompts.file=/dev/zero",
    "prompts.file=.",
    "prompts.file=no_such.txt",
    "prompts.text=[1, 2]",
    'prompts.text=["no caption"]',
    "run.log=wandb2",
    'run.log=["nope"]',
    "run.continue_from=config.toml",
    "run.continue_from=nope.safetensors",
    "run.continue_from=.",
    "lora.targets=(",
    "lora.targets=nothing_matches",
    "lora.targets=" + "(a+)+" * 20,
    "seed=1e400",
    "seed=0x",
)


def texts(rng: random.Random, folder: Path, material: Material) -> Case:
    """The text of a file: broken, foreign, endless, in other encodings."""
    good = as_toml(BASE)
    kind = rng.randrange(3)
    if kind == 0:
        body, what = damaged_bytes(good.encode(), rng)
        return train(folder, body, what, ("config.toml",))
    if kind == 1:
        lines = good.splitlines()
        for _ in range(rng.randrange(1, 4)):
            _disturb(lines, rng)
        return train(folder, "\n".join(lines), "lines moved, doubled or cut", ("config.toml",))
    name = rng.choice(sorted(_TEXTS))
    text, expected = _TEXTS[name]
    text = text.replace("GOOD", good) if isinstance(text, str) else text
    return train(
        folder, text, name, ("config.toml", "the weights of brightness"), expected=expected
    )


def _disturb(lines: list[str], rng: random.Random) -> None:
    place = rng.randrange(len(lines))
    what = rng.randrange(4)
    if what == 0:
        lines.insert(rng.randrange(len(lines)), lines[place])
    elif what == 1:
        lines.insert(rng.randrange(len(lines)), lines.pop(place))
    elif what == 2:
        lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
    else:
        line = lines[place]
        at = rng.randrange(len(line) + 1)
        lines[place] = line[:at] + rng.choice('"[]{}=.#\\\n\x00é\u202e') + line[at:]


_NO, _YES, _ANY = Expected.refused, Expected.accepted, Expected.either
_TEXTS: dict[str, tuple[str | bytes, Expected]] = {
    "empty": ("", _NO),
    "spaces": (" \n\n\t", _NO),
    "byte order mark": ("\ufeffGOOD", _YES),
    "Windows line ends": (as_toml(BASE).replace("\n", "\r\n"), _YES),
    "UTF-16": (as_toml(BASE).encode("utf-16"), _ANY),
    "zero bytes": (b"\0" * 1000, _NO),
    "an executable": (b"\x7fELF" + bytes(range(256)) * 10, _NO),
    "JSON": ('{"iterations": 1}', _NO),
    "20,000 nested brackets": ("x = " + "[" * 20000 + "]" * 20000 + "\nGOOD", _NO),
    "nested tables": ("x = " + "{a=" * 3000 + "1" + "}" * 3000 + "\nGOOD", _NO),
    "a key of 3,000 parts": ("GOOD\n" + ".".join("a" * 3000) + " = 1", _NO),
    "a text of 5 MB": ('GOOD\n[sde]\nrule = "' + "a" * 5_000_000 + '"', _NO),
    "a number of 10,000 digits": ("seed = " + "9" * 10000 + "\nGOOD", _NO),
    "a key twice": ("seed = 1\nseed = 2\nGOOD", _NO),
    "a table twice": ("GOOD\n[model]\ntype = 'tiny'", _NO),
    "an unknown key": ("speed = 1\nGOOD", _NO),
    "an unknown table": ("GOOD\n[modell]\ntype = 'tiny'", _NO),
    "a table as a list": ("GOOD\n[[sde]]\neta = 0.5", _NO),
    "a list of rewards, one without a name": ("GOOD\n[[reward]]\nweight = 1.0", _NO),
    "an empty list of rewards": ("reward = []\nGOOD", _NO),
    "a date": ("seed = 2026-01-01\nGOOD", _NO),
    "reward as a text": ("reward = 'brightness'\nGOOD", _NO),
    "reward weights infinite": ("GOOD\n[reward]\nname = 'brightness'\nweight = inf", _NO),
    "reward weight 1e308": ("GOOD\n[reward]\nname = 'brightness'\nweight = 1e308", _NO),
    "reward weight 0": ("GOOD\n[reward]\nname = 'brightness'\nweight = 0", _ANY),
    "model without a type": (as_toml(BASE).replace('type = "tiny"', ""), _NO),
    "model as a number": (as_toml({k: v for k, v in BASE.items() if k != "model"}), _NO),
    "a preset as well": ("preset = 'safe-lora'\nGOOD", _ANY),
    "a record": ("GOOD\n[record]\nmodel = 1", _ANY),
    "a broken record of a plan": ("GOOD\n[record.plan]\nsizes = 1\nwritten = 2", _ANY),
}
