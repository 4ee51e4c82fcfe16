"""Whatever stands in a configuration file: it is read, or an error names the file and the key."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest
from records import all_keys, save_run, write_document

from chunk_grpo_core.configfile.keys import checked, keys
from chunk_grpo_core.configfile.reading import read_config, read_config_file
from chunk_grpo_core.configfile.record import read_document, read_record, read_run, read_settings
from chunk_grpo_core.configfile.toml import entry, parse_toml, toml_value
from chunk_grpo_core.configfile.writing import write_config
from chunk_grpo_core.models.registry import FAMILIES
from chunk_grpo_core.runs.view import run_view

FILES = {
    "tiny": {"model": {"type": "tiny"}},
    "flux": {
        "model": {"type": "flux", "path": "flux"},
        "prompts": {"file": "prompts.txt"},
        "reward": [{"name": "target_colour"}, {"name": "clipscore", "weight": 0.5}],
    },
}
COMMON = {"iterations": 2, "grid": {"steps": 5, "shift": 2.0}, "plan": {"chunks": "2, 2"}}
WORDS = [
    "", " ", "none", "inf, 1", "1e308, 1e308", "1e-320,1e-320", "nan", "1, 2", "-1, 5", "cut 2",
    "cut 99999999999", "adaptive 0 0", "size 0", "size 4 4", "softmax 0", "softmax 1e9", "model",
    "9" * 5000, "1," * 3000, "(", "[" * 500, "\0", "a\0b", "~nobody-has-this-name/x", "x" * 5000,
    "x/" * 3000, "\U0001f98a", "\u2028", "cuda:99999999999", "cpu", "all", "true",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2**31, 2**63 - 1, -(2**63) + 1, 0.0, -0.0, 0.5, 1.0, -0.5, 1e308, -1e308, 1e-308,
    1e-320, 1e-300, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
LITERALS = [
    "9" * 400, "9" * 5000, "-" + "9" * 30, "1e999", "2026-11-29", "07:32:00", "[]", "[[]]", "[{}]",
    "{}", "[nan]", "[1, 'x']", "['x', 'y']", "['']", "[1.0, 0.5, 0.0]", "[1.0, 0.0, 0.5]", "[inf]",
    "[1e-320, 0.0]", "{a = 1}", "true", "[" * 40 + "]" * 40, "[" + "0.5," * 20000 + "]",
]  # fmt: skip
VALUES = [*map(toml_value, NUMBERS), *map(toml_value, WORDS), *LITERALS]
SECONDS = 5
"""For one file, on a busy machine."""


def text_of(document):
    lines = [entry(name, value) for name, value in document.items() if not is_table(value)]
    for name, value in document.items():
        if isinstance(value, dict):
            lines += [f"[{name}]", *(entry(key, item) for key, item in value.items())]
        elif is_table(value):
            for item in value:
                lines += [f"[[{name}]]", *(entry(key, inner) for key, inner in item.items())]
    return "\n".join(lines) + "\n"


def is_table(value):
    return isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict))


def outcome(file, text):
    """Read a file: None if it is taken, and then as it writes itself; else the message."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.perf_counter()
    try:
        config = read_config_file(file)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        assert message.startswith(str(file)) and len(message) < 2000, message[:300]
        assert "Traceback" not in message and "\n" not in message.split("(at line")[0], message
        return message
    finally:
        assert time.perf_counter() - start < SECONDS
    again = read_config(parse_toml(write_config(config)), file.parent, file.stem)
    assert again.settings == config.settings and again.tables() == config.tables()
    return None


def with_value(document, table, name, literal):
    """The text of a file in which one key has another value, written as TOML."""
    mark = "\ue000"
    if table == "reward":
        changed = {**document, "reward": [{"name": "target_colour", name: mark}]}
    elif table:
        changed = {**document, table: {**document.get(table, {}), name: mark}}
    else:
        changed = {**document, name: mark}
    return text_of(changed).replace(f'"{mark}"', literal)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Possible nested set")
@pytest.mark.parametrize("family", FILES)
def test_every_key_takes_a_hostile_value_or_is_named_in_the_error(tmp_path, family):
    document = {**COMMON, **FILES[family]}
    assert outcome(tmp_path / "a.toml", text_of(document)) is None
    known = [(table, name) for table, names in keys(FAMILIES[family].table).items()
             for name in names]  # fmt: skip
    known += [("reward", name) for name in ("name", "weight", "colour")] + [("", "preset")]
    rng = random.Random(0)
    taken = refused = 0
    for table, name in known:
        for literal in rng.sample(VALUES, 10):
            message = outcome(tmp_path / "a.toml", with_value(document, table, name, literal))
            if message is None:
                taken += 1
                continue
            refused += 1
            body = message.removeprefix(str(tmp_path / "a.toml"))
            names = {
                name,
                name.replace("_", " "),
                table,
                "nested too deeply",
                "integer string conversion",
                "line",
            }
            if name == "name" and table == "reward":
                names |= {"setting"}
            assert any(word and word in body for word in names), (table, name, literal[:60], body)
    assert refused > 400 and taken > 40


@pytest.mark.parametrize("seed", range(4))
def test_files_that_were_changed_at_random_are_read_or_refused(tmp_path, seed):
    rng = random.Random(seed)
    sources = [text_of({**COMMON, **part}).encode() for part in FILES.values()]
    sources += [write_config(read_config({**COMMON, **FILES["tiny"]}, tmp_path, "a")).encode()]
    for number in range(100):
        body = bytearray(rng.choice(sources))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(body))
            kind = rng.randrange(5)
            if kind == 0:
                body[place] = rng.randrange(256)
            elif kind == 1:
                del body[place : place + rng.randint(1, 40)]
            elif kind == 2:
                lines = body.split(b"\n")
                line = rng.choice(lines)
                lines.insert(rng.randrange(len(lines)), line)
                body = bytearray(b"\n".join(lines))
            elif kind == 3:
                body[place:place] = rng.choice(VALUES).encode()[:200]
            else:
                body = body[:place] or bytearray(b"x")
        outcome(tmp_path / f"{number}.toml", bytes(body))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 20_000, "nested too deeply"),
        ("x = " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a." * 20_000 + "a = 1", "nested too deeply"),
        ("[" + "a." * 20_000 + "a]", "nested too deeply"),
        ("x = {" + "a." * 500 + "a = 1}", "nested too deeply"),
        ("[[" + "'a'." * 900 + "b]]", "nested too deeply"),
        ("[model]\ntype = 'tiny'\n" * 2, "line 3"),
        ("k" * 200_000 + " = 1", "there is no key kkkk"),
        ("preset = '" + "p" * 200_000 + "'", "there is no preset 'pppp"),
        ("[model]\ntype = '" + "m" * 200_000 + "'", "model.type is 'mmm"),
        ("reward = 3\n" + text_of({**COMMON, **FILES["tiny"]}), "[reward] is 3; it must be a"),
        ("model = 3", "model is 3; it must be a table: [model]"),
        ("[[model]]\ntype = 'tiny'", "it must be a table: [model]"),
        ("", "model.type is None"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_files_of_odd_shape_are_refused_at_once(tmp_path, text, message):
    assert message in (outcome(tmp_path / "a.toml", text) or "")


def test_files_that_are_no_text_or_too_large_are_named(tmp_path):
    file = tmp_path / "a.toml"
    assert "no text in UTF-8" in outcome(file, "größe = 1".encode("latin-1"))
    assert "no text in UTF-8" in outcome(file, "x = 1".encode("utf-16"))
    assert outcome(file, b"\xef\xbb\xbf" + text_of({**COMMON, **FILES["tiny"]}).encode()) is None
    with file.open("wb") as stream:
        stream.truncate(2**40)  # sparse
    with pytest.raises(ValueError, match="has 1,099,511,627,776 bytes; a file of settings has at"):
        read_config_file(file)
    with pytest.raises(FileNotFoundError):
        read_config_file(tmp_path)


def test_a_number_that_is_not_finite_or_too_long_is_refused_by_every_key():
    for family in FAMILIES.values():
        for table in keys(family.table).values():
            for key in table.values():
                for value in (float("nan"), float("inf"), 10**400, -(2**70), [float("nan")]):
                    with pytest.raises(ValueError, match=rf"^{re.escape(key.dotted)} is "):
                        checked(key, value)
                if key.is_path:
                    with pytest.raises(ValueError, match="half a character"):
                        checked(key, "\udc80")


# The record of a run


@pytest.mark.slow
def test_a_record_of_any_other_shape_is_named_and_never_a_bug(tmp_path):
    save_run(tmp_path, "tiny")
    document = read_document(tmp_path)
    rng = random.Random(1)
    odd = [
        0,
        -1,
        2.5,
        "",
        "x",
        [],
        [1],
        {},
        {"a": 1},
        True,
        "\0",
        1e308,
    ]
    readers = (read_document, read_record, read_settings, read_run, run_view)
    everything = dict(all_keys(document))
    paths = [*everything, "record", "record.digests", "record.plan", "record.changes", "grid"]
    for path in paths:
        for value in rng.sample(odd, 2):
            broken = dict(document)
            place, *names = broken, *path.split(".")
            for name in names[:-1]:
                inner = place[int(name) - 1 if name.isdecimal() else name]
                inner = dict(inner) if isinstance(inner, dict) else list(inner)
                place[int(name) - 1 if name.isdecimal() else name] = inner
                place = inner
            place[names[-1]] = value
            write_document(tmp_path, broken)
            for read in readers:
                try:
                    read(tmp_path)
                except (ValueError, FileNotFoundError) as error:
                    assert str(Path(tmp_path) / "run.toml") in str(error), (path, value, str(error))
