"""Sigmas and chunk plans."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from ..compare import record_of
from ..material import BASE, EVEN, Material, as_toml, put
from ..outcomes import Case, Check, Expected
from ..warm import Ended
from .configurations import in_record, train

__all__ = ["plans", "sigmas"]

_STEPS = 5
_TRAINABLE = _STEPS - 1


def sigmas(rng: random.Random, folder: Path, material: Material) -> Case:
    """``grid.sigmas``: good ones, first ones just below 1, and everything else."""
    inner = sorted((rng.uniform(0.05, 0.95) for _ in range(rng.randrange(1, 4))), reverse=True)
    kind = rng.choice(["good", "below 1", "wrong", "wrong"])
    if kind == "wrong":
        name = rng.choice(sorted(_WRONG_SIGMAS))
        values, expected = _WRONG_SIGMAS[name](inner), Expected.refused
    elif kind == "below 1":
        name = "first sigma just below 1"
        first = rng.choice([0.98, 0.99, 0.995, 0.999, 0.9999, 0.99999994, 1 - 2**-53])
        values, expected = [first, *EVEN[1:]], Expected.either
    else:
        name, values, expected = "good", [1.0, *inner, 0.0], Expected.accepted
    data = put(BASE, {"grid": {"sigmas": values}, "plan": {"chunks": "step"}})
    about = f"{name}: {values!r:.80}"
    case = train(folder, as_toml(data), about, ("grid.sigmas", "[grid]"), expected=expected)
    reference = material.even_reward if kind == "below 1" else None
    return Case(**{**vars(case), "check": _learns(values, reference)})


def _learns(values: list[float], reference: float | None) -> Check:
    """Scores and gradients are there; with an even grid they are those of a first sigma of 1."""

    def check(folder: Path, ended: Ended) -> str:
        if wrong := in_record(folder / "run", {"grid.sigmas": values}):
            return wrong
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        row = json.loads(lines[-1])
        if row["reward_mean"] is None or row["grad_norm"] is None:
            return "no reward or no gradient"
        if reference is not None and abs(row["reward_mean"] - reference) > 0.1:
            return f"the mean reward is {row['reward_mean']:.3f}, and with 1 it is {reference:.3f}"
        return ""

    return check


_WRONG_SIGMAS = {
    "rising": lambda inner: [1.0, *sorted([*inner, 0.5]), 0.0],
    "a repeated one": lambda inner: [1.0, inner[0], inner[0], 0.0],
    "two ones": lambda inner: [1.0, 1.0, *inner, 0.0],
    "two zeros": lambda inner: [1.0, *inner, 0.0, 0.0],
    "above 1": lambda inner: [1.5, *inner, 0.0],
    "first is 0.5": lambda inner: [0.5, 0.04, 0.0],
    "last is not 0": lambda inner: [1.0, *inner, 0.01],
    "below 0": lambda inner: [1.0, *inner, -0.1],
    "turned": lambda inner: [0.0, *sorted(inner), 1.0],
    "NaN": lambda inner: [1.0, math.nan, 0.0],
    "first is NaN": lambda inner: [math.nan, *inner, 0.0],
    "infinite": lambda inner: [math.inf, *inner, 0.0],
    "two": lambda inner: [1.0, 0.0],
    "one": lambda inner: [1.0],
    "none": lambda inner: [],
    "texts": lambda inner: ["1", "0.5", "0"],
    "lists": lambda inner: [[1.0], [0.5], [0.0]],
    "of a 1,000-step schedule": lambda inner: [1000.0, 500.0, 0.0],
    "100,000 that fall by nothing": lambda inner: [1.0] * 100_000 + [0.0],
}


def plans(rng: random.Random, folder: Path, material: Material) -> Case:
    """``plan.chunks`` and ``plan.weights`` over four trainable steps."""
    kind = rng.choice(["good", "good", "bad plan", "bad plan", "bad weights", "bad weights"])
    sizes = _composition(rng)
    chunks = rng.choice([", ", " ", ",", ";"]).join(map(str, sizes))
    if kind == "bad plan":
        chunks = rng.choice(_BAD_PLANS)
        return _plan(folder, chunks, "", Expected.refused, None)
    if kind == "bad weights":
        weights = rng.choice(_BAD_WEIGHTS).replace("N", ", ".join(["1"] * len(sizes)))
        return _plan(folder, chunks, weights, Expected.refused, None)
    if rng.random() < 0.5:
        chunks, wanted = rng.choice(sorted(_GOOD_PLANS.items(), key=str))
        return _plan(folder, chunks, rng.choice(["", "uniform"]), Expected.accepted, wanted)
    numbers = [rng.choice([0.5, 1, 2, 0.25]) for _ in sizes]
    written = rng.choice(["", "uniform", ", ".join(map(str, numbers))])
    return _plan(folder, chunks, written, Expected.accepted, sizes)


def _composition(rng: random.Random) -> list[int]:
    sizes, left = [], _TRAINABLE
    while left:
        sizes.append(rng.randrange(1, left + 1))
        left -= sizes[-1]
    return sizes


def _plan(
    folder: Path, chunks: str, weights: str, expected: Expected, wanted: list[int] | None
) -> Case:
    data = put(BASE, {"grid.steps": _STEPS, "plan": {"chunks": chunks, "weights": weights}})
    about = f"chunks {chunks!r:.60}, weights {weights!r:.60}"

    def check(place: Path, ended: Ended) -> str:
        record = record_of(place / "run")
        if "plan" in record["record"]:
            sizes = record["record"]["plan"]["sizes"]
        else:
            line = (place / "run" / "metrics.jsonl").read_text().splitlines()[-1]
            sizes = wanted if wanted is None else _sizes(json.loads(line), wanted)
        if sum(sizes or ()) != _TRAINABLE or (wanted and list(sizes) != wanted):
            return f"the chunks are {sizes}, not {wanted}"
        return in_record(place / "run", {"plan.chunks": chunks})

    case = train(
        folder,
        as_toml(data),
        about,
        ("[plan]", "plan.chunks", "plan '", "weights '"),
        expected=expected,
    )
    return Case(**{**vars(case), "check": check})


def _sizes(row: dict[str, object], wanted: list[int]) -> list[int]:
    """A row of metrics has one number for each chunk; sizes themselves stand nowhere else."""
    fractions = row.get("clip_fraction")
    count = len(fractions) if isinstance(fractions, list) else 0
    return wanted if count == len(wanted) else [0] * count


_GOOD_PLANS: dict[str, list[int] | None] = {
    "step": [1, 1, 1, 1],
    "whole": [4],
    "size 3": [3, 1],
    "size 2": [2, 2],
    "cut 2": None,
    "cut 2 2": None,
    "adaptive": None,
    "adaptive 1 2": None,
    "[1, 3]": [1, 3],
    "(2 2)": [2, 2],
    "STEP": [1, 1, 1, 1],
    "٤": [4],
}
_BAD_PLANS = (
    "",
    "5",
    "1, 1, 1",
    "1, 1, 1, 1, 1",
    "0, 4",
    "-1, 5",
    "2.0, 2",
    "1e0, 3",
    "four",
    "step 1",
    "size",
    "size 0",
    "size -2",
    "size 9999999999999999999999",
    "cut 5",
    "cut 0",
    "cut 2 3",
    "adaptive 3 2",
    "adaptive 9 9",
    "adaptive 0 0",
    "9" * 5000,
    "1 " * 50_000,
    "²",
    "2, 2\n[sde]\neta = 3",
    "[[2], [2]]",
    "2; DROP",
    "nan",
)
_BAD_WEIGHTS = (
    "N, 1",
    "nan N",
    "-1",
    "words",
    "softmax 0",
    "softmax -1",
    "softmax nan",
    "softmax 1 2",
    "curve 2",
    "0 " * 4,
    "N inf",
    "1e999",
    "9" * 5000,
)
