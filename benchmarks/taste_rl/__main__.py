"""Train on heads of simulated people. It goes on where it stopped; only one may write at a time.

python -m benchmarks.taste_rl --arms default no-prompt    # all picks, tastes and seeds of them
python -m benchmarks.taste_rl --report                    # REPORT.md and plot, at any time
python -m benchmarks.taste_rl --smallest                  # one iteration of each arm, kept nowhere
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from chunk_grpo_core.models.tiny.reward import TinyWorldReward

from ..machine import facts
from ..race.judge import Judge
from .arms import ARMS
from .offline import perform_offline
from .people import TASTES
from .run import Run, perform

__all__ = ["RESULTS", "read_rows"]

RESULTS = Path(__file__).parent.parent / "results" / "taste_rl"


def read_rows(results: Path) -> list[dict[str, Any]]:
    """The rows of all finished runs; a last line that was cut off is passed over."""
    path = results / "runs.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def runs_of(arms: list[str], seeds: list[int] | None = None) -> list[Run]:
    """All runs of arms, or those of some seeds, as they are done: first those that decide on
    settings, then seed by seed."""
    runs = [
        Run(arm, picks, taste, seed)
        for arm in arms
        for seed in ARMS[arm].seeds
        if seeds is None or seed in seeds
        for picks in ARMS[arm].picks
        for taste in ARMS[arm].tastes or TASTES
    ]
    return sorted(runs, key=lambda run: (not ARMS[run.arm].is_preparation, run.seed))


def _perform(run: Run, judge: Judge, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return perform_offline(run, judge, rows) if ARMS[run.arm].offline else perform(run, judge)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.taste_rl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, help="only the runs of these seeds")
    parser.add_argument("--report", action="store_true", help="write the report and do no more")
    parser.add_argument("--smallest", action="store_true", help="one iteration of each arm")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.report:
        from .report import write_report

        write_report(options.results, read_rows(options.results))
        return
    judge, rows = Judge(TinyWorldReward()), read_rows(options.results)
    if options.smallest:
        for arm in options.arms:
            print(json.dumps(_perform(Run(arm, 40, "clean", 0, units=1), judge, rows)))
        return
    os.nice(19)
    options.results.mkdir(parents=True, exist_ok=True)
    done = [row["run"] for row in rows]
    left = [run for run in runs_of(options.arms, options.seeds) if run.key not in done]
    with (options.results / "runs.jsonl").open("a", encoding="utf-8") as file:
        for number, run in enumerate(left, 1):
            row = _perform(run, judge, rows) | {"machine": facts()}
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{time.strftime('%H:%M:%S')} {number}/{len(left)} {_line(row)}", flush=True)


def _line(row: dict[str, Any]) -> str:
    taste, adherence = fmean(row["taste"]), fmean(row["adherence"])
    return (
        f"{row['run']} {row['units']} units, {row['seconds']} s, taste {taste:+.2f}, "
        f"adherence {adherence:+.2f}, head {row['head']:+.2f}, duels {row['duels']}"
    )


if __name__ == "__main__":
    main()
