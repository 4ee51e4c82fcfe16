"""Write the report of a study: REPORT.md, summary.json and figures, all from the results alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from chunk_grpo_core.watch.pictures import save_png

from .analysis import MEASURES, Analysis, Arm, Study, analyse
from .checks import PilotPair
from .design import ALONE, REGIMES
from .figures import FIGURES
from .measure import write_json
from .stats import Comparison
from .words import (
    REGIME_NAMES,
    interval,
    of_regime,
    p_value,
    pilot_sentence,
    plus_minus,
    summary,
    verdict,
)

__all__ = ["read_study", "write_report"]


def read_study(results: Path) -> Study:
    """Read what was measured so far.

    Raises:
        ValueError: There is no study in the folder.
    """

    def read(path: Path) -> dict:
        return json.loads(path.read_text(encoding="utf-8"))

    def read_runs(folder: Path) -> dict:
        names = {path: path.relative_to(folder).with_suffix("") for path in folder.rglob("*.json")}
        return {names[path].as_posix(): read(path) for path in sorted(names)}

    for name in ("base.json", "curves.json"):
        if not (results / name).is_file():
            raise ValueError(
                f"{results} has no {name}, so no study was begun there; start one with "
                "'python -m benchmarks.chunk_vs_step run'"
            )
    return Study(
        base=read(results / "base.json"),
        curves=read(results / "curves.json"),
        runs=read_runs(results / "runs"),
        pilot=read_runs(results / "pilot"),
    )


def write_report(results: Path) -> Analysis:
    """Analyse a study, finished or not, and write everything beside its results."""
    study = read_study(results)
    analysis = analyse(study)
    write_json(results / "summary.json", asdict(analysis))
    shown = {name: draw(study, analysis) for name, (_, draw) in FIGURES.items()}
    for name, picture in shown.items():
        path = results / f"{name}.png"
        path.unlink(missing_ok=True)
        if picture is not None:
            save_png(picture, path)
    drawn = [name for name, picture in shown.items() if picture is not None]
    (results / "REPORT.md").write_text(_markdown(analysis, drawn), encoding="utf-8")
    return analysis


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _sweep_table(analysis: Analysis) -> str:
    rows = []
    for row in analysis.sweep:
        mean = f"{sum(row.gains) / len(row.gains):+.4f}" if row.gains else ""
        single = ", ".join(f"{gain:+.4f}" for gain in row.gains)
        note = "chosen" + (", at the edge of the swept range" if row.at_edge else "")
        cells = [REGIME_NAMES[row.regime], row.arm, f"{row.rate:g}", mean, single]
        rows.append([*cells, note if row.chosen else ""])
    return _table(("regime", "arm", "learning rate", "mean gain", "each seed", ""), rows)


def _digits(measure: str) -> int:
    """Decimals to show; the grid measure is about 0.001."""
    return 6 if measure == "grid" else 4


def _arm_table(arms: Iterable[Arm]) -> str:
    return _table(
        ("arm", "runs", "learning rate", "gain in reward", *MEASURES),
        (
            [arm.arm, len(arm.runs), f"{arm.learning_rate:g}", plus_minus(arm.gain)]
            + [plus_minus(arm.changes[name], _digits(name)) for name in MEASURES]
            for arm in arms
        ),
    )


def _cost_table(arms: Iterable[Arm]) -> str:
    return _table(
        (
            "arm",
            "regime",
            "updates",
            "sample-steps through backward",
            "target",
            "seconds",
            "clipped",
            "largest error of a first ratio",
        ),
        (
            [
                arm.arm,
                REGIME_NAMES[arm.regime],
                f"{arm.updates:g}",
                f"{arm.passes:.0f}",
                arm.target_passes,
                f"{arm.seconds:.0f}",
                f"{arm.clip_fraction:.1%}",
                f"{arm.ratio_error_first_update:.1e}" if arm.ratio_error_first_update else "0",
            ]
            for arm in arms
        ),
    )


def _comparison_table(comparisons: Iterable[Comparison]) -> str:
    return _table(
        (
            "regime",
            "difference",
            "pairs",
            "mean",
            "p",
            "corrected in its family",
            "corrected for all tests",
            "verdict in its family",
        ),
        (
            [
                REGIME_NAMES[c.regime],
                f"{c.arm} - {c.against}",
                len(c.seeds),
                interval(c.difference),
                p_value(c.p),
                p_value(c.corrected_p),
                p_value(c.p_of_all),
                verdict(c),
            ]
            for c in comparisons
        ),
    )


def _half_table(comparisons: Iterable[Comparison]) -> str:
    return _table(
        ("regime", "difference", "seeds", "mean", "p, uncorrected"),
        (
            [
                REGIME_NAMES[c.regime],
                f"{c.arm} - {c.against}",
                f"{c.seeds[0]} to {c.seeds[-1]}",
                interval(c.difference),
                p_value(c.p),
            ]
            for c in comparisons
        ),
    )


def _pilot_table(pairs: Iterable[PilotPair]) -> str:
    return _table(
        ("pilot", "regime", "learning rate", "seed", "judged on", "chunk - step"),
        (
            [
                pair.folder,
                REGIME_NAMES[pair.regime],
                f"{pair.rate:g}",
                pair.seed,
                "choosing captions" if pair.sweep else "held-out captions",
                f"{pair.difference:+.4f}",
            ]
            for pair in pairs
        ),
    )


_TRANSFER = (
    "Ratios are means over the D latent dimensions (1,024 here). A step whose mean moves by a KL "
    "divergence of k nats changes the logarithm of its ratio by -k / D on average, with a "
    "standard deviation of sqrt(2 k) / D. A clip of eps is therefore reached at k of about "
    "(D eps)^2 / 2, while that is small: 0.005 nats here. It grows with the latent: the same clip "
    "leaves FLUX.1 at 512 x 512, with 64 times as many dimensions, several nats for each step. "
    "What off-policy runs show here, where the clip acts, is no forecast for larger latents; "
    "on-policy, ratios are 1 and nothing is clipped."
)


def _markdown(analysis: Analysis, drawn: Sequence[str]) -> str:
    """The whole report; sections without numbers yet are left out."""

    def figures(*names: str) -> list[str]:
        return [f"![{FIGURES[name][0]}]({name}.png)" for name in names if name in drawn]

    base = ", ".join(f"{name} {value:.{_digits(name)}f}" for name, value in analysis.base.items())
    alone = [arm for arm in analysis.arms if arm.arm in ALONE]
    blocks = [
        "# Chunk against step on the tiny FLUX",
        "Written by `python -m benchmarks.chunk_vs_step report` from the results beside it. What "
        "was done and why: [PROTOCOL.md](../../chunk_vs_step/PROTOCOL.md).",
        summary(analysis),
        "Rewards are in 0..1. Means are over runs (seeds). The 95 % intervals are not corrected "
        f"for the number of tests; p values are (Holm), for the tests of their family, as the "
        f"protocol says, and for all {analysis.tests} together, which is the stricter reading.",
    ]
    blocks += ["## Learning rates", "Gains on the choosing captions.", _sweep_table(analysis)]
    if analysis.arms:
        blocks += [
            "## Arms",
            f"Changes against the base model on the held-out captions. Base model: {base}.",
        ]
    for regime in REGIMES:
        arms = [arm for arm in of_regime(analysis.arms, regime).values() if arm not in alone]
        if arms:
            blocks += [f"### {REGIME_NAMES[regime].capitalize()}", _arm_table(arms)]
    blocks += figures("gains")
    if analysis.primary:
        blocks += ["## Primary comparisons", _comparison_table(analysis.primary)]
    if analysis.secondary:
        blocks += ["## Secondary comparisons", _comparison_table(analysis.secondary)]
    blocks += figures("differences")
    if analysis.halves:
        blocks += [
            "## By halves of the seeds",
            "The differences that have more than five pairs, over either half of the seeds alone.",
            _half_table(analysis.halves),
        ]
    if alone:
        blocks += ["## Which chunk alone", _arm_table(alone)]
    if analysis.alone:
        blocks.append(_comparison_table(analysis.alone))
    blocks += figures("alone")
    if analysis.arms:
        blocks += [
            "## Cost and checks",
            "Means over runs. Steps with a gradient of zero (clipped, or all rewards of a group "
            "equal) need no backward pass, so off-policy fewer than the target go through it. "
            "Clipped: share of the drawn samples, mean over chunks and updates; the first update "
            "of a rollout never clips. Plans that train another number of steps on average make "
            "more or fewer updates, for equal sample-steps.",
            _cost_table(analysis.arms),
            "## What does not transfer",
            _TRANSFER,
        ]
    blocks += ["## Curves", *figures("learning", "curves")]
    if analysis.pilot:
        blocks += [
            "## Pairs of the pilot",
            "Runs that were made before the protocol was changed, with other numbers of updates: "
            "the pairs that differ in nothing but the plan. " + pilot_sentence(analysis),
            _pilot_table(analysis.pilot),
        ]
    if analysis.others:
        blocks += [
            "## Other runs",
            "The pilot, and any run that the protocol does not name. They are part of no number "
            "above. Gains are on the captions that judged the run (sweep: choosing captions).",
            _table(
                ("run", "updates", "gain in reward"),
                ([run.name, run.updates, f"{run.gain:+.4f}"] for run in analysis.others),
            ),
        ]
    return "\n\n".join(blocks) + "\n"
