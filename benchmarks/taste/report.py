"""Write REPORT.md and two plots from the rows of the cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from chunk_grpo_core.rewards.taste.report import wilson
from chunk_grpo_core.watch.pictures import save_png
from chunk_grpo_core.watch.plot_style import PALETTE, open_figure, render, style_axes

from .clicking import SHOWN
from .study import COUNTS, RANDOM, WRONG
from .world import PEOPLE

__all__ = ["write_report"]

Row = Mapping[str, Any]
_WANTED = (0.93, 0.97)
_COLOURS = (PALETTE[5], PALETTE[1], PALETTE[2], PALETTE[3], PALETTE[0])
_SHOWN_WRONG = 0.1
"""Share of wrong clicks of the plot of accuracy."""


def write_report(results: Path, rows: Sequence[Row], pilot: Sequence[Row]) -> None:
    """Write ``REPORT.md``, ``accuracy.png`` and ``coverage.png``."""
    _plot_accuracy(results / "accuracy.png", rows)
    _plot_coverage(results / "coverage.png", [*rows, *pilot])
    (results / "REPORT.md").write_text(_markdown(rows, pilot), encoding="utf-8")


def _is_covered(row: Row) -> bool:
    return row["low"] <= row["true"] <= row["high"]


def _coverage(rows: Sequence[Row]) -> tuple[object, ...]:
    """Reports, coverage with its interval, truth below and above, mean width."""
    if not rows:
        return (0, "-", "-", "-", "-")
    covered = wilson(sum(map(_is_covered, rows)), len(rows))
    below = fmean(row["true"] < row["low"] for row in rows)
    above = fmean(row["true"] > row["high"] for row in rows)
    width = fmean(row["high"] - row["low"] for row in rows)
    share = f"{_percent(covered.share)} ({_percent(covered.low)} to {_percent(covered.high)})"
    return (len(rows), share, _percent(below), _percent(above), f"{100 * width:.0f}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _split(rows: Iterable[Row], key: Callable[[Row], object]) -> dict[object, list[Row]]:
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _table(header: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in rows)


def _coverage_table(rows: Sequence[Row]) -> str:
    names: tuple[tuple[str, Callable[[Row], object]], ...] = (
        ("", lambda row: "all"),
        ("", lambda row: row["kind"]),
        ("clicks: ", lambda row: row["clicks"]),
        ("wrong clicks: ", lambda row: None if row["person"] == RANDOM
         else f"{100 * row['wrong']:.0f} %"),
        ("person: ", lambda row: row["person"]),
    )  # fmt: skip
    lines = [
        [f"{word}{value}", *_coverage(group)]
        for word, key in names
        for value, group in _split(rows, key).items()
        if value is not None
    ]
    return _table(("", "reports", "covered, %", "truth below", "truth above", "width"), lines)


def _kinds_table(rows: Sequence[Row]) -> str:
    groups = _split(rows, lambda row: (row["kind"], row["clicks"]))
    lines = [
        [kind, *(_percent(fmean(map(_is_covered, groups[kind, count])))
                 if (kind, count) in groups else "-" for count in COUNTS)]
        for kind in SHOWN
    ]  # fmt: skip
    return _table(("", *COUNTS), lines)


def _accuracy_table(rows: Sequence[Row]) -> str:
    groups = _split(
        (row for row in rows if row["accuracy"] is not None and row["kind"] == "duel"),
        lambda row: (row["person"], row["wrong"], row["clicks"]),
    )
    lines = []
    for person in PEOPLE:
        for wrong in WRONG:
            cells = [
                [row["accuracy"] for row in groups.get((person, wrong, count), [])]
                for count in COUNTS
            ]
            texts = [
                f"{fmean(cell):.2f} ({min(cell):.2f} to {max(cell):.2f})" if cell else "-"
                for cell in cells
            ]
            lines.append([person, f"{100 * wrong:.0f} %", *texts])
    for wrong in WRONG:
        texts = [
            f"**{fmean(cell):.3f}**" if cell else "-"
            for count in COUNTS
            if (cell := [row["accuracy"] for person in PEOPLE
                         for row in groups.get((person, wrong, count), [])]) is not None
        ]  # fmt: skip
        lines.append(["mean of the six", f"{100 * wrong:.0f} %", *texts])
    return _table(("person", "wrong", *COUNTS), lines)


def _by_kind_table(rows: Sequence[Row]) -> str:
    groups = _split(
        (row for row in rows if row["accuracy"] is not None),
        lambda row: (row["kind"], row["clicks"]),
    )
    lines = [
        [kind, *(f"{fmean(row['accuracy'] for row in groups[kind, count]):.3f}"
                 if (kind, count) in groups else "-" for count in COUNTS)]
        for kind in SHOWN
    ]  # fmt: skip
    return _table(("", *COUNTS), lines)


def _looks_table(rows: Sequence[Row], is_random: bool) -> str:
    judged = [row for row in rows if row["looks"] and (row["person"] == RANDOM) == is_random]
    lines = []
    for name, group in [*_split(judged, lambda row: row["kind"]).items(), ("all", judged)]:
        counts = [
            sum(any(passed for clicks, passed in row["looks"] if clicks <= count) for row in group)
            for count in (40, 80, 160)
        ]
        shares = [f"{count} ({100 * count / max(1, len(group)):.0f} %)" for count in counts]
        lines.append([name, len(group), *shares])
    return _table(("", "people", "up to 40", "up to 80", "up to 160 clicks"), lines)


def _plot_accuracy(path: Path, rows: Sequence[Row]) -> None:
    """A panel for each person: accuracy against clicks, a line for each share of wrong clicks."""
    with open_figure(False, 8.4, 5.2, dpi=120) as (figure, theme):
        grid = figure.subplots(2, 3, sharex=True, sharey=True)
        for axes, person in zip(grid.flat, PEOPLE, strict=True):
            for wrong, colour in zip(WRONG, (PALETTE[5], PALETTE[2], PALETTE[1]), strict=True):
                cells = [
                    [row["accuracy"] for row in rows if row["kind"] == "duel"
                     and (row["person"], row["wrong"], row["clicks"]) == (person, wrong, count)]
                    for count in COUNTS
                ]  # fmt: skip
                points = [(count, cell) for count, cell in zip(COUNTS, cells, strict=True) if cell]
                if not points:
                    continue
                places = [count for count, _ in points]
                axes.plot(places, [fmean(cell) for _, cell in points], "o-", color=colour, ms=3.5,
                          label=f"{100 * wrong:.0f} % wrong")  # fmt: skip
                if wrong == _SHOWN_WRONG:
                    axes.fill_between(places, [min(cell) for _, cell in points],
                                      [max(cell) for _, cell in points], color=colour,
                                      alpha=0.15, lw=0)  # fmt: skip
            axes.axhline(0.5, color=theme["text"], lw=1, ls=":")
            axes.set_xscale("log")
            axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
            axes.minorticks_off()
            axes.set_title(person, fontsize=9)
            style_axes(axes, theme)
        grid[0, 0].set_ylim(0.4, 1.0)
        grid[1, 2].legend(fontsize=8, framealpha=0.6, loc="upper left")
        for axes in grid[1]:
            axes.set_xlabel("duels")
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy, unseen captions")
        save_png(render(figure), path)


def _plot_coverage(path: Path, rows: Sequence[Row]) -> None:
    """Coverage of each kind against the number of clicks, with its interval, in the wanted band."""
    with open_figure(False, 7.2, 4.4, dpi=120) as (figure, theme):
        axes = figure.add_subplot()
        axes.axhspan(*_WANTED, color=theme["grid"], alpha=0.6, lw=0, label="93 to 97 %")
        for number, (kind, colour) in enumerate(zip(SHOWN, _COLOURS, strict=True)):
            for place, count in enumerate(COUNTS):
                group = [row for row in rows if (row["kind"], row["clicks"]) == (kind, count)]
                if not group:
                    continue
                share = wilson(sum(map(_is_covered, group)), len(group))
                axes.errorbar(
                    [place + (number - 2) * 0.13], [share.share],
                    yerr=[[share.share - share.low], [share.high - share.share]],
                    fmt="o", ms=4, color=colour, capsize=2, label=kind if place == 0 else None,
                )  # fmt: skip
        axes.set_xticks(range(len(COUNTS)), [str(count) for count in COUNTS])
        axes.set_xlabel("clicks")
        axes.set_ylabel("share of reports whose interval holds the truth")
        axes.set_ylim(0.84, 1.005)
        style_axes(axes, theme)
        figure.legend(loc="outside upper center", fontsize=8, ncols=6)
        save_png(render(figure), path)


def _markdown(rows: Sequence[Row], pilot: Sequence[Row]) -> str:
    seeds = len({row["seed"] for row in rows if row["person"] != RANDOM})
    blocks = [
        "# How well a head learns simulated people, and whether what it says of itself is true",
        "Written by `python -m benchmarks.taste --report` from `rows.jsonl`. What was done and "
        f"why: [PROTOCOL.md](../../taste/PROTOCOL.md). {len(rows):,} reports, {seeds} seeds.",
        "## Does the interval hold the truth?",
        "The share of further clicks on other captions that the head agrees with, against the "
        "interval of the report; in percent, with the 95 % interval of the coverage. `width` is "
        "that of the interval, in points.",
        _coverage_table(rows),
        "By kind and number of clicks, %:",
        _kinds_table(rows),
        "![Coverage by kind and number of clicks, of the run and the pilot together](coverage.png)",
        "### Run and pilot together",
        _coverage_table([*rows, *pilot]),
        "### The pilot",
        "Other seeds, on which the formula was chosen among four (`pilot.jsonl`):",
        _coverage_table(pilot),
        "## Is a random clicker called understood?",
        _looks_table(rows, is_random=True),
        "## Are real tastes recognised?",
        "The six people with 0, 10 and 20 % wrong clicks.",
        _looks_table(rows, is_random=False),
        "## Accuracy on captions that nobody clicked on",
        "Duels; mean of the seeds (lowest to highest). Half is chance.",
        _accuracy_table(rows),
        "![Accuracy against the number of duels](accuracy.png)",
        "Mean of all people and wrong clicks, by the kind of click:",
        _by_kind_table(rows),
    ]
    return "\n\n".join(blocks) + "\n"
