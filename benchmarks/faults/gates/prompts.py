"""Prompt files: every format and encoding, honest, damaged and hostile."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

from ..material import Material
from ..mutate import damaged_bytes
from ..outcomes import Case, Check, Expected
from ..warm import Ended

__all__ = ["prompt_files"]

_TEXTS = (
    "a cat in a hat",
    "a red circle, two blue squares",
    'a sign that says "OPEN"',
    "l'été à la mer",
    "猫が座っている",
    "a 27\" monitor; a 'mouse'",
    "emoji 🦊 and \u200dzero width",
    "tab\there",
    "semi;colon",
    "back\\slash and {braces}",
    "a" * 3000,
    "# not a comment",
    "=1+1",
    "null",
    "شمس",
)
_METADATA = ({}, {"target_text": "OPEN"}, {"tag": "count", "number": 2}, {"prompt_id": 7, "x": [1]})


def prompt_files(rng: random.Random, folder: Path, material: Material) -> Case:
    """A file for ``score --prompt-file``; as many pictures as there are prompts in it."""
    texts = rng.sample(_TEXTS, rng.randrange(1, 5))
    kind = rng.choice(["good", "good", "good", "common", "common", "damaged", "hostile"])
    if kind == "hostile":
        return _hostile(rng, folder)
    forms = _GOOD if kind != "common" else _COMMON
    form = rng.choice(sorted(forms))
    suffix, body = forms[form](texts, rng.choice(_METADATA))
    if kind == "damaged":
        body, what = damaged_bytes(body, rng)
        return _case(folder, suffix, body, f"{form}, {what}", (), Expected.either, len(texts))
    expected = Expected.accepted if kind == "good" else Expected.either
    return _case(folder, suffix, body, form, texts, expected, len(texts))


def _case(
    folder: Path,
    suffix: str,
    body: bytes,
    about: str,
    texts: Sequence[str],
    expected: Expected,
    count: int,
) -> Case:
    (folder / f"prompts{suffix}").write_bytes(body)
    return _score(folder, suffix, about, expected, count, _has(texts) if texts else None)


def _score(
    folder: Path, suffix: str, about: str, expected: Expected, count: int, check: Check | None
) -> Case:
    from PIL import Image

    Image.new("RGB", (8, 8), (40, 80, 120)).save(folder / "p.png")
    argv = ("score", *["p.png"] * count, "--reward", "brightness", "--json")
    return Case(
        argv=(*argv, "--prompt-file", f"prompts{suffix}"),
        about=about,
        names=(f"prompts{suffix}",),
        expected=expected,
        check=check,
        seconds=15,
    )


def _has(texts: Sequence[str]) -> Check:
    def check(folder: Path, ended: Ended) -> str:
        got = [row["prompt"] for row in json.loads(ended.stdout)["scores"]]
        wanted = list(texts) * (len(got) if len(texts) == 1 else 1)
        return "" if got == wanted else f"the prompts are {got!r:.150}, not {wanted!r:.150}"

    return check


def _lines(texts: Sequence[str]) -> str:
    return "\n".join(f"\\{text}" if text.startswith("#") else text for text in texts) + "\n"


def _jsonl(texts: Sequence[str], metadata: dict[str, object], key: str = "prompt") -> str:
    return "".join(json.dumps({key: text, **metadata}, ensure_ascii=False) + "\n" for text in texts)


def _csv(texts: Sequence[str], metadata: dict[str, object], key: str, separator: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerow([key, *metadata])
    writer.writerows([text, *metadata.values()] for text in texts)
    return out.getvalue()


_GOOD = {
    ".txt": lambda texts, more: (".txt", _lines(texts).encode()),
    ".txt with a byte order mark": lambda t, more: (".txt", _lines(t).encode("utf-8-sig")),
    ".txt of Windows": lambda t, more: (".txt", _lines(t).replace("\n", "\r\n").encode()),
    ".txt with comments": lambda t, more: (".txt", f"# x\n\n{_lines(t)}  \n# y".encode()),
    ".jsonl": lambda texts, more: (".jsonl", _jsonl(texts, more).encode()),
    ".jsonl with caption": lambda t, more: (".jsonl", _jsonl(t, more, "caption").encode()),
    ".jsonl in ASCII": lambda t, m: (
        ".jsonl",
        "".join(json.dumps({"prompt": text, **m}) + "\n" for text in t).encode(),
    ),
    ".csv": lambda texts, more: (".csv", _csv(texts, more, "prompt", ",").encode()),
    ".csv with a byte order mark": lambda t, m: (
        ".csv",
        _csv(t, m, "caption", ",").encode("utf-8-sig"),
    ),
    ".TXT": lambda texts, more: (".TXT", _lines(texts).encode()),
}
_COMMON = {
    ".txt in UTF-16": lambda texts, more: (".txt", _lines(texts).encode("utf-16")),
    ".txt in cp1252": lambda t, more: (".txt", _lines([*t, "é"]).encode("cp1252", "replace")),
    ".jsonl with text": lambda t, more: (".jsonl", _jsonl(t, more, "text").encode()),
    ".jsonl with Prompt": lambda t, more: (".jsonl", _jsonl(t, more, "Prompt").encode()),
    ".jsonl with prompt_en": lambda t, more: (".jsonl", _jsonl(t, more, "prompt_en").encode()),
    ".csv with ;": lambda texts, more: (".csv", _csv(texts, more, "prompt", ";").encode()),
    ".csv in UTF-16": lambda t, more: (".csv", _csv(t, more, "prompt", ",").encode("utf-16")),
    ".tsv": lambda texts, more: (".tsv", _csv(texts, more, "prompt", "\t").encode()),
    ".json, a list of texts": lambda t, more: (".json", json.dumps(list(t)).encode()),
    ".json, a list of objects": lambda t, more: (
        ".json",
        json.dumps([{"prompt": text, **more} for text in t]).encode(),
    ),
    ".jsonl with nested metadata": lambda t, more: (
        ".jsonl",
        _jsonl(t, {**more, "boxes": [[1, 2], {"a": None}]}).encode(),
    ),
    ".yaml": lambda texts, more: (".yaml", "".join(f"- {t}\n" for t in texts).encode()),
    "no ending": lambda texts, more: ("", _lines(texts).encode()),
}


def _hostile(rng: random.Random, folder: Path) -> Case:
    name = rng.choice(sorted(_HOSTILE))
    suffix, body, expected = _HOSTILE[name]
    path = folder / f"prompts{suffix}"
    if body is not None:
        path.write_bytes(body)
    elif name == "a pipe":
        os.mkfifo(path)
    elif name == "a folder":
        path.mkdir()
    elif name == "a link to itself":
        path.symlink_to(path)
    elif name == "endless zeros":
        path.symlink_to("/dev/zero")
    return _score(folder, suffix, name, expected, 1, None)


_NO, _ANY = Expected.refused, Expected.either
_HOSTILE: dict[str, tuple[str, bytes | None, Expected]] = {
    "missing": (".txt", None, _NO),
    "a pipe": (".txt", None, _NO),
    "a folder": (".txt", None, _NO),
    "a link to itself": (".txt", None, _NO),
    "endless zeros": (".txt", None, _NO),
    "empty": (".txt", b"", _NO),
    "empty .jsonl": (".jsonl", b"", _NO),
    "empty .csv": (".csv", b"", _NO),
    "comments only": (".txt", b"# a\n#b\n", _NO),
    "a picture": (".txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), _NO),
    "100,000 nested brackets": (".jsonl", b'{"prompt": ' + b"[" * 100_000, _NO),
    "nested metadata, 100,000 deep": (
        ".jsonl",
        b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        _NO,
    ),
    "NaN as metadata": (".jsonl", b'{"prompt": "a", "x": NaN}', _ANY),
    "a number of 6,000 digits": (".jsonl", b'{"prompt": "a", "x": ' + b"9" * 6000 + b"}", _NO),
    "half a surrogate": (".jsonl", b'{"prompt": "a \\ud800"}', _ANY),
    "a zero sign": (".jsonl", b'{"prompt": "a \\u0000 b"}', _ANY),
    "prompt as a number": (".jsonl", b'{"prompt": 5}', _NO),
    "prompt as null": (".jsonl", b'{"prompt": null}', _NO),
    "prompt as a list": (".jsonl", b'{"prompt": ["a"]}', _NO),
    "a list": (".jsonl", b'["a"]', _NO),
    "two prompts in one line": (".jsonl", b'{"prompt": "a"}{"prompt": "b"}', _NO),
    "prompt and caption": (".jsonl", b'{"prompt": "a", "caption": "b"}', _ANY),
    "no column of prompts": (".csv", b"x,y\n1,2\n", _NO),
    "an open quotation": (".csv", b'prompt\n"a cat\nb', _NO),
    "a cell of 2 MB": (".csv", b'prompt\n"' + b"a" * 2_000_000 + b'"\n', _ANY),
    "a zero byte": (".csv", b"prompt\na\0b\n", _ANY),
    "more cells than columns": (".csv", b"prompt\na,b\n", _NO),
    "a column twice": (".csv", b"prompt,prompt\na,b\n", _NO),
    "a line of 20 MB": (".txt", b"a " * 10_000_000, _ANY),
    "a million lines": (".txt", b"a cat\n" * 1_000_000, _ANY),
    ".exe": (".exe", b"MZ", _NO),
}
