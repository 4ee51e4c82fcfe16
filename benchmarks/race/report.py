"""Write REPORT.md and plots, all from the rows beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from chunk_grpo_core.watch.pictures import save_png

from .arms import ARMS, SCREENING_SEED
from .figures import draw_measure
from .outcomes import CLEAN_MARGIN, at_units, interval_of, reached, winner
from .results import choices, read_base, read_finals, read_screening, read_true

__all__ = ["write_report"]

LEVELS = (0.75, 0.769, 0.80)
MOMENTS = (12_000, 24_000, 48_000)
SEEDS = range(5)
DAMAGE = ("clean", "grid", "saturation", "velocity_ratio", "diversity", "kid", "moved")
Rows = Sequence[Mapping[str, Any]]
Runs = Mapping[int, Rows]


def write_report(results: Path) -> None:
    """Write ``REPORT.md``, ``reward.png`` and ``clean.png``, of a race that is finished or not."""
    base, finals = read_base(results, "whole"), read_finals(results, "whole")
    for name in ("reward", "clean"):
        if finals:
            save_png(draw_measure(finals, base, name), results / f"{name}.png")
    (results / "REPORT.md").write_text(_markdown(results, base, finals), encoding="utf-8")


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _units(value: float) -> str:
    return f"{value / 1000:.1f}k" if math.isfinite(value) else "never"


def _mean(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean with half the width of its interval; a dash where a run has no such measurement."""
    numbers = [value for value in values if value is not None]
    if not numbers or len(numbers) < len(values):
        return "-"
    interval = interval_of(numbers)
    half = "" if math.isnan(interval.low) else f" ± {interval.high - interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f}{half}"


def _at(runs: Runs, units: int, name: str) -> list[float | None]:
    return [at_units(rows, units, name) for rows in runs.values()]


def _reach_row(arm: str, runs: Runs) -> list[str]:
    cells = [arm, str(len(runs))]
    for level in LEVELS:
        values = [reached(rows, level) for rows in runs.values()]
        count = sum(map(math.isfinite, values))
        spread = f"{_units(min(values))} to {_units(max(values))}" if count else ""
        of_all = "" if count == len(runs) else f", {count} of {len(runs)}"
        cells.append(f"{_units(median(values))} ({spread}{of_all})" if count else "never")
    single = median(reached(rows, 0.769, running=False) for rows in runs.values())
    seconds = median(reached(rows, 0.769, "seconds") for rows in runs.values())
    return [*cells, _units(single), f"{seconds:.0f}" if math.isfinite(seconds) else "never"]


def _reward_row(arm: str, runs: Runs) -> list[str]:
    rewards = [_mean(_at(runs, units, "reward")) for units in MOMENTS]
    strict = [_mean(_at(runs, units, "strict")) for units in MOMENTS]
    ends = [_units(fmean(rows[-1]["units"] for rows in runs.values()))]
    return [arm, *rewards, *strict, *ends, _mean([rows[-1]["reward"] for rows in runs.values()])]


def _damage_row(arm: str, runs: Runs, units: int, when: str = "") -> list[str]:
    digits = {name: 4 if name == "kid" else 3 for name in DAMAGE}
    return [arm + when, *(_mean(_at(runs, units, name), digits[name]) for name in DAMAGE)]


def _one_row(name: str, numbers: Mapping[str, float]) -> list[str]:
    cells = [numbers.get(measure) for measure in DAMAGE]
    return [name, *("-" if value is None else f"{value:.3f}" for value in cells)]


def _screening_table(results: Path) -> str:
    chosen, rows = choices(results), []
    for arm, runs in read_screening(results).items():
        for index, measured in sorted(runs.items()):
            patch = ARMS[arm].candidates[index]
            text = ", ".join(f"{key} {_value(value)}" for key, value in patch.items())
            first, last = measured[-2], measured[-1]
            cells = [arm, text or "as the base", f"{first['reward']:.3f}", f"{last['reward']:.3f}"]
            note = "chosen" if chosen.get(arm) == index else ""
            rows.append([*cells, f"{last['clean']:.3f}", f"{last['velocity_ratio']:.2f}", note])
    header = ("arm", "candidate", "reward at 6k", "at 9k", "clean at 9k", "velocity_ratio", "")
    return _table(header, rows)


def _value(value: object) -> str:
    steps = getattr(value, "steps", None)
    return f"of {steps} steps" if steps else str(value)


def _verdict(finals: Mapping[str, Runs], base: Mapping[str, float]) -> str:
    whole = {arm: list(runs.values()) for arm, runs in finals.items() if len(runs) >= len(SEEDS)}
    best = winner(whole, base)
    if best is None:
        return "No arm with all seeds is clean and reaches 0.769: there is no winner."
    units = median(reached(rows, 0.769) for rows in whole[best])
    text = f"**The winner is `{best}`**: {_units(units)} units to 0.769 (median over seeds)"
    if "demo" not in finals or best == "demo":
        return text + "."
    runs = list(finals["demo"].values())
    demo = median(reached(rows, 0.769) for rows in runs)
    if not math.isfinite(demo):
        return text + "; the demo's recipe does not reach it (median)."
    clean = fmean(rows[-1]["clean"] for rows in runs)
    return (
        f"{text}, **1 / {demo / units:.1f}** of the {_units(demo)} of the demo's recipe "
        f"({len(runs)} seeds), which ends with a cleanliness of {clean:.3f}."
    )


def _second_world(results: Path) -> list[str]:
    finals = read_finals(results, "form")
    if not finals:
        return ["Not run."]
    base = read_base(results, "form")
    names = ("reward", "whole", "clean", "colour", "background", "velocity_ratio")
    rows = [["base model", "", *(f"{base[name]:.3f}" for name in names)]]
    for arm, runs in finals.items():
        for units in (12_000, 24_000):
            cells = [_mean(_at(runs, units, name)) for name in names]
            rows.append([arm, f"{_units(units)}, {len(runs)} seeds", *cells])
    return [
        "Only shape, size and count are rewarded; `whole` is the tiny world's own reward, of "
        "which the training sees nothing else.",
        _table(("arm", "at", *names), rows),
    ]


def _markdown(results: Path, base: Mapping[str, float], finals: Mapping[str, Runs]) -> str:
    missing = [
        f"`{arm}` ({len(finals.get(arm, {}))} of {len(SEEDS)} seeds)"
        for arm in ARMS
        if len(finals.get(arm, {})) < len(SEEDS)
    ]
    grids = [arm for arm in finals if (results / "whole" / "final" / f"{arm}-seed0.png").exists()]
    blocks = [
        "# The race of recipes on the tiny FLUX",
        "Written by `python -m benchmarks.race --report` from the rows beside it. What was done "
        "and why: [PROTOCOL.md](../../race/PROTOCOL.md). A unit is one sample through the "
        "transformer, three with gradients. Means over seeds, ± half of Student's 95 % interval.",
        _verdict(finals, base),
        f"Base model: reward {base['reward']:.3f}, strict {base['strict']:.3f}, clean "
        f"{base['clean']:.3f} (an arm below {base['clean'] - CLEAN_MARGIN:.3f} is not clean).",
        "## Work to a reward",
        "Units at which the mean of two measurements reaches the reward: median over seeds, "
        "smallest and largest, and how many seeds reached it if not all. Last columns: units of "
        "the first single measurement, and processor seconds of the training, to 0.769.",
        _table(
            ("arm", "seeds", *map(str, LEVELS), "0.769, single", "seconds to 0.769"),
            (_reach_row(arm, runs) for arm, runs in finals.items()),
        ),
        "![Held-out reward against units](reward.png)" if finals else "",
        "## Reward at equal work",
        _table(
            (
                "arm",
                *(f"reward at {_units(units)}" for units in MOMENTS),
                *(f"strict at {_units(units)}" for units in MOMENTS),
                "end",
                "reward there",
            ),
            (_reward_row(arm, runs) for arm, runs in finals.items()),
        ),
        "## What reward hacking breaks",
        "At the first measurement from 24,000 units on. `kid` (distance to true pictures, lower "
        "is better) and `moved` (distance to the base model's pictures) are those of an ImageNet "
        "network that nobody trained on; a dash: not measured there.",
        _table(
            ("arm", *DAMAGE),
            [
                _one_row("true pictures", read_true(results)),
                _one_row("base model", base),
                *(_damage_row(a, runs, 24_000) for a, runs in finals.items()),
            ],
        ),
        "![Cleanliness against units](clean.png)" if finals else "",
        *_long_runs(finals),
        "## Before and after",
        "24 held-out captions, seed 0: a row of the base model, and below it the same noise after "
        "the training.",
        *(f"`{arm}`\n\n![{arm}](whole/final/{arm}-seed0.png)" for arm in grids),
        "## The second world",
        *_second_world(results),
        "## Screening",
        f"One seed ({SCREENING_SEED}), 9,000 units, other captions than those above: it chose the "
        "settings and is no result.",
        _screening_table(results),
        "## Not run",
        ", ".join(missing) + "." if missing else "Nothing: every arm has all its seeds.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _long_runs(finals: Mapping[str, Runs]) -> list[str]:
    """The same measures later, of arms that run for longer."""
    rows = []
    for arm, runs in finals.items():
        if None not in _at(runs, 48_000, "clean"):
            ends = min(run[-1]["units"] for run in runs.values())
            rows.append(_damage_row(arm, runs, 48_000, ", 48k"))
            rows.append(_damage_row(arm, runs, ends, f", end ({_units(ends)})"))
    return ["### Later", _table(("arm", *DAMAGE), rows)] if rows else []
