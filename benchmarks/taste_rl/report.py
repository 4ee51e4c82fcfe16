"""Write REPORT.md and a plot from the rows of the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from chunk_grpo_core.measure.interval import Interval
from chunk_grpo_core.rewards.taste.report import wilson
from chunk_grpo_core.watch.pictures import save_png
from chunk_grpo_core.watch.plot_style import PALETTE, open_figure, render, style_axes

from ..race.outcomes import interval_of
from .arms import ARMS, SEEDS
from .chosen import noise_difference
from .people import TASTES, WRONG
from .run import DUELS

__all__ = ["write_report"]

MARGIN = 0.1
"""How far the interval of adherence may reach below 0, in deviations."""
Row = Mapping[str, Any]
Group = tuple[str, int]
"""Arm and number of picks."""
_RESULTS = {name: arm for name, arm in ARMS.items() if not arm.is_preparation}


def write_report(results: Path, rows: Sequence[Row]) -> None:
    """Write ``REPORT.md`` and ``gains.png``, whether all runs are done or not."""
    groups = _groups(rows)
    _plot(results / "gains.png", groups)
    (results / "REPORT.md").write_text(_markdown(groups, rows), encoding="utf-8")


def _plot(path: Path, groups: Mapping[Group, list[Row]]) -> None:
    """A line for each arm: taste on the left, adherence on the right."""
    with open_figure(False, 8.4, 1.2 + 0.34 * len(groups), dpi=120) as (figure, theme):
        panels = figure.subplots(1, 2, sharey=True)
        names = (("taste", "true taste"), ("adherence", "adherence"))
        for axes, (name, words) in zip(panels, names, strict=True):
            for place, ((arm, picks), runs) in enumerate(groups.items()):
                gain = _interval(runs, name)
                axes.errorbar(
                    [gain.mean], [place], xerr=[[gain.mean - gain.low], [gain.high - gain.mean]],
                    fmt="o" if picks == 40 else "s", capsize=3, ms=5,
                    color=PALETTE[5] if arm == "default" else PALETTE[2],
                )  # fmt: skip
            axes.axvline(0, color=theme["text"], lw=1)
            axes.set_xlabel(f"gain in {words}, deviations")
            style_axes(axes, theme)
        panels[1].axvline(-MARGIN, color=theme["text"], ls=":", lw=1)
        labels = [f"{arm}, {picks} picks ({len(runs)})" for (arm, picks), runs in groups.items()]
        panels[0].set_yticks(range(len(groups)), labels)
        panels[0].set_ylim(len(groups) - 0.5, -0.5)
        save_png(render(figure), path)


def _groups(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    groups: dict[Group, list[Row]] = {}
    for arm, of_arm in _RESULTS.items():
        for picks in of_arm.picks:
            if runs := [row for row in rows if row["run"][:2] == [arm, picks]]:
                groups[arm, picks] = runs
    return groups


def _interval(runs: Iterable[Row], name: str) -> Interval:
    """Over runs: each the mean over the 96 captions."""
    return interval_of([_mean(row, name) for row in runs])


def _mean(row: Row, name: str) -> float:
    return fmean(row[name]) if isinstance(row[name], list) else row[name]


def _text(interval: Interval) -> str:
    return f"{interval.mean:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _holds(taste: Interval, adherence: Interval) -> str:
    rises = "rises" if taste.low > 0 else "falls" if taste.high < 0 else "cannot be told"
    stays = "does not fall" if adherence.low > -MARGIN else (
        "falls" if adherence.high < 0 else "cannot be told"
    )  # fmt: skip
    return f"taste {rises}, adherence {stays}"


def _of_taste(runs: Iterable[Row], taste: str, name: str) -> Interval | None:
    """Over the 96 captions, each the mean over seeds."""
    gains = [row[name] for row in runs if row["run"][2] == taste]
    return interval_of([fmean(column) for column in zip(*gains, strict=True)]) if gains else None


def _difference(groups: Mapping[Group, list[Row]], group: Group, name: str) -> str:
    """To ``default`` with as many picks, in the same tastes and seeds."""
    defaults = {tuple(row["run"][2:]): row for row in groups.get(("default", group[1]), [])}
    pairs = [
        _mean(row, name) - _mean(defaults[key], name)
        for row in groups[group]
        if (key := tuple(row["run"][2:])) in defaults
    ]
    return _text(interval_of(pairs)) if len(pairs) > 1 else "-"


_WATCHED = {"stop": "no-prompt", "default-stop": "default"}
"""Arm that ends when adherence falls -> the same without that."""


def _alarm(groups: Mapping[Group, list[Row]]) -> str:
    """How often the watch ended a run, against what became of the same run without it."""
    lines = []
    for arm, other in _WATCHED.items():
        watched = groups.get((arm, 40), [])
        free = {tuple(row["run"][2:]): row for row in groups.get((other, 40), [])}
        counts = Counter[tuple[bool, bool]]()
        for row in watched:
            if (twin := free.get(tuple(row["run"][2:]))) is not None:
                fell = interval_of(twin["adherence"]).high < 0
                counts[fell, row["iterations"] < row["rollouts"]] += 1
        fell, held = (counts[is_fall, True] + counts[is_fall, False] for is_fall in (True, False))
        lines.append([arm, len(watched), f"{counts[True, True]} of {fell}",
                      f"{counts[False, True]} of {held}"])  # fmt: skip
    return _table(("arm", "runs", "ended where it fell", "ended where it did not"), lines)


def _duels(rows: Sequence[Row]) -> str:
    shares = [row["duels"] / DUELS for row in rows]
    expected = [row["better"] * (1 - WRONG) + (1 - row["better"]) * WRONG for row in rows]
    inside = 0
    for row, share in zip(rows, expected, strict=True):
        interval = wilson(row["duels"], DUELS, DUELS)
        inside += interval.low <= share <= interval.high
    table = torch.tensor([shares, expected, [_mean(row, "taste") for row in rows]])
    to_pairs, to_gain = (float(torch.corrcoef(table[[0, i]])[0, 1]) for i in (1, 2))
    sure = [
        (row, interval)
        for row in rows
        if (interval := wilson(row["duels"], DUELS, DUELS)).low > 0.5 or interval.high < 0.5
    ]
    right = sum((_mean(row, "taste") > 0) == (interval.low > 0.5) for row, interval in sure)
    return (
        f"Over {len(rows)} runs the share of duels won is {fmean(shares):.2f} on average and "
        "expected to be "
        f"{fmean(expected):.2f} from all 192 pairs; the Wilson interval of 20 duels holds the "
        "expected share in "
        f"{inside} of {len(rows)} runs. Correlation of the share with the expected one: "
        f"{to_pairs:.2f}; with the "
        f"true gain: {to_gain:.2f}. In {len(sure)} runs 20 duels are beyond doubt, and in {right} "
        "of these the true "
        "gain has that sign."
    )  # fmt: skip


def _markdown(groups: Mapping[Group, list[Row]], rows: Sequence[Row]) -> str:
    whole = len(TASTES) * len(SEEDS)
    verdicts, gains = [], []
    for (arm, picks), runs in groups.items():
        taste, adherence = _interval(runs, "taste"), _interval(runs, "adherence")
        gains.append(
            [
                arm, picks, len(runs), _text(taste), _text(adherence),
                _text(_interval(runs, "clean")), _text(_interval(runs, "head")),
                f"{fmean(row['duels'] for row in runs) / DUELS:.2f}",
                f"{fmean(row['units'] for row in runs):.0f}", _holds(taste, adherence),
            ]
        )  # fmt: skip
        if arm == "default":
            verdicts.append(f"{picks} picks: {_holds(taste, adherence)}")
    by_taste = [
        [arm, picks, taste, _text(gain), _text(adherence)]
        for (arm, picks), runs in groups.items()
        for taste in TASTES
        if (gain := _of_taste(runs, taste, "taste"))
        and (adherence := _of_taste(runs, taste, "adherence"))
    ]
    guards = [
        [group[0], group[1], _difference(groups, group, "taste"),
         _difference(groups, group, "adherence")]
        for group in groups
        if group[0] != "default"
    ]  # fmt: skip
    missing = [
        f"`{arm}` with {picks} picks ({len(groups.get((arm, picks), []))} of {whole})"
        for arm in _RESULTS
        for picks in ARMS[arm].picks
        if len(groups.get((arm, picks), [])) < whole
    ]
    stored = noise_difference(rows, "taste")
    blocks = [
        "# Training on a fitted taste",
        "Written by `python -m benchmarks.taste_rl --report` from `runs.jsonl`. What was done "
        "and why: "
        "[PROTOCOL.md](../../taste_rl/PROTOCOL.md). Gains on 96 held-out captions, base and LoRA "
        "from the same noise, in "
        "deviations of the pool (cleanliness: 0 to 1), with 95 % intervals.",
        f"**The claim, in the default form.** {'; '.join(verdicts) or 'Not run'}.",
        "## Gains",
        "Intervals over runs (4 tastes x 3 seeds). `head` is the head's own opinion, and no "
        "result.",
        _table(
            ("arm", "picks", "runs", "true taste", "adherence", "clean", "head", "duels won",
             "units", ""),
            gains,
        ),
        "![Gains in taste and in adherence](gains.png)",
        "## By taste",
        "Intervals over the 96 captions, each the mean of the seeds.",
        _table(("arm", "picks", "taste", "true taste", "adherence"), by_taste),
        "## What each guard is worth",
        "Difference to `default` in the same tastes and seeds.",
        _table(("arm", "picks", "true taste", "adherence"), guards),
        "## The alarm of a reward that fell",
        "Runs that the watch of adherence on 24 training captions ended, against the same taste "
        "and seed without it: "
        "there adherence on the 96 held-out captions fell (95 % interval below 0), or it did not.",
        _alarm(groups),
        "## Blind duels",
        _duels(rows) if len(rows) > 2 else "Not run.",
        "## Stored against fresh noise of the picks",
        f"True taste, stored minus fresh, in the same tastes and seeds: {_text(stored)}."
        if stored
        else "Not run.",
        "## Not run",
        f"{', '.join(missing)}." if missing else "Nothing is missing.",
    ]  # fmt: skip
    return "\n\n".join(blocks) + "\n"
