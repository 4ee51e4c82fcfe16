"""``--setting KEY=VALUE`` for rewards: settings that are right, wrong and absurd."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from ..material import Material
from ..outcomes import Case, Check, Expected
from ..warm import Ended

__all__ = ["settings"]

_URL = "http://127.0.0.1:9"
"""The port of a service that nobody runs any more."""
_PATIENCE = ("url=" + _URL, "timeout=1", "retries=0")
_KEYS: dict[str, tuple[str, ...]] = {
    "target_colour": ("colour",),
    "target_image": ("image",),
    "jpeg_compressibility": ("quality",),
    "remote_http": ("url", "batch_size", "timeout", "retries", "backoff", "concurrency"),
    "vlm_judge": ("url", "model", "judge", "timeout", "concurrency", "token_env"),
    "pickscore": ("path", "device", "dtype", "batch_size", "folders"),
    "ocr": ("strict", "no_target", "longest_side", "threads"),
    "aesthetic": ("path", "head", "device"),
}
_NONSENSE: tuple[str, ...] = (
    "null",
    "[]",
    "{}",
    "true",
    "NaN",
    "Infinity",
    "-1",
    "1e308",
    "9200000000000000000000",
    "[[[[1]]]]",
    '{"a": {"b": 1}}',
    '""',
    "\\",
    "[" * 5000,
    "x" * 10_000,
    "\x1b[31mred",
    "'; DROP TABLE rewards",
)
_FITS = {
    ("ocr", "strict", "true"),
    ("ocr", "threads", "null"),
    ("ocr", "no_target", "null"),
    ("pickscore", "folders", "[]"),
    ("aesthetic", "path", "null"),
    ("pickscore", "path", "null"),
}
"""Nonsense that is none there."""
_GOOD: tuple[tuple[str, str, float | None], ...] = (
    ("target_colour", "colour=#ff0000", None),
    ("target_colour", "colour=#204060", 1.0),
    ("target_colour", " colour = #204060 ", 1.0),
    ("target_image", "image=p.png", 1.0),
    ("jpeg_compressibility", "quality=50", None),
    ("brightness", "", None),
)
_ODD = (
    "colour",
    "=#ff0000",
    "colour=",
    "colour=#12345",
    "colour=#gggggg",
    "colour=blue",
    "colour=204060",  # a number, where a text is wanted
    "colour=#ff0000ff",
    "colours=#ff0000",
    "colour.x=1",
    "co lour=1",
    "__class__=1",
    "self=1",
    "images=1",
)


_PROMPT = 'a sign that says "HI"'
"""Also for the reward that reads what a prompt asks for."""


def settings(rng: random.Random, folder: Path, material: Material) -> Case:
    """One picture and a reward with a setting."""
    Image.new("RGB", (8, 8), (0x20, 0x40, 0x60)).save(folder / "p.png")
    kind = rng.choice(["good", "nonsense", "nonsense", "nonsense", "odd", "twice"])
    if kind == "good":
        reward, text, score = rng.choice(_GOOD)
        more = (text,) if text else ()
        return _case(reward, more, Expected.accepted, (), None if score is None else _is(score))
    if kind == "odd":
        text = rng.choice(_ODD)
        return _case("target_colour", (text,), Expected.refused, ("colour", "setting", text))
    if kind == "twice":
        text = ("colour=#ff0000", "colour=#00ff00")
        return _case("target_colour", text, Expected.refused, ("colour",))
    reward = rng.choice(sorted(_KEYS))
    key, value = rng.choice(_KEYS[reward]), rng.choice(_NONSENSE)
    expected = Expected.either if (reward, key, value) in _FITS else Expected.refused
    names = (key,)
    others: list[str] = []
    if reward in ("remote_http", "vlm_judge"):
        others = [pair for pair in _PATIENCE if not pair.startswith(f"{key}=")]
        others += ["model=m"] if reward == "vlm_judge" and key != "model" else []
    return _case(reward, (*others, f"{key}={value}"), expected, names, None)


def _case(
    reward: str,
    pairs: tuple[str, ...],
    expected: Expected,
    names: tuple[str, ...],
    check: Check | None = None,
) -> Case:
    more = [word for pair in pairs for word in ("--setting", pair)]
    return Case(
        argv=("score", "p.png", "--prompt", _PROMPT, "--reward", reward, "--json", *more),
        about=f"{reward}: {', '.join(pairs):.80}",
        names=names,
        expected=expected,
        check=check,
        seconds=20,
    )


def _is(score: float) -> Check:
    def check(folder: Path, ended: Ended) -> str:
        rows: list[dict[str, Any]] = json.loads(ended.stdout)["scores"]
        got = rows[0]["score"]
        return "" if abs(got - score) < 1e-6 else f"the score is {got}, not {score}"

    return check
