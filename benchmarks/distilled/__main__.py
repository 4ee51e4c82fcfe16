"""Distil the tiny FLUX, train the student on three roads, and report. Finished runs are read.

python -m benchmarks.distilled distil              # the student, once, outside the repository
python -m benchmarks.distilled train --seeds 0-4
python -m benchmarks.distilled report
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch

from chunk_grpo_core.models.tiny.model import ASSET
from chunk_grpo_core.models.tiny.reward import TinyWorldReward

from ..chunk_vs_step.measure import write_json
from ..race.__main__ import seeds_of
from ..race.judge import TESTING, Judge
from .arms import ARMS
from .distil import DistilSettings, distil, student_file
from .report import RESULTS, gate, write_report
from .run import Run, measure_untrained, perform

CAPTIONS = 48
"""Held-out captions that measure, 2 pictures of each."""


def _distil(student: Path, results: Path) -> None:
    """Make the student unless it is there; measure it beside the model it came from."""
    if not student.exists():
        spent = distil(student, DistilSettings())
        write_json(results / "distillation.json", {"settings": str(DistilSettings()), **spent})
    judge = Judge(TinyWorldReward(), TESTING[:CAPTIONS])
    models = {"base": ASSET, "student": student}
    rows = {
        name: measure_untrained(path, judge, results / f"{name}.png")
        for name, path in models.items()
    }
    write_json(results / "untrained.json", rows)
    print(json.dumps(rows, indent=1))
    if fault := gate(rows["base"], rows["student"]):
        raise SystemExit(f"the student fails the protocol's gate: {fault}; distil it longer")


def _do(runs: list[Run], student: Path, results: Path) -> None:
    for run in runs:
        begin = time.process_time()
        last = perform(run, student, results, Judge(TinyWorldReward(), TESTING[:CAPTIONS]))[-1]
        shown = {key: last[key] for key in ("units", "reward_4", "clean_4", "reward_17", "gap")}
        spent = time.process_time() - begin
        print(f"{time.strftime('%H:%M:%S')} {run.path} {shown} {spent:.0f} s", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.distilled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("distil", "train", "report"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0-4"), help="0-4 or 0,3")
    parser.add_argument("--student", type=Path, default=student_file())
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "report":
        write_report(options.results)
        return
    os.nice(19)
    if options.command == "distil":
        _distil(options.student, options.results)
        return
    untrained = options.results / "untrained.json"
    if not (options.student.exists() and untrained.exists()):
        raise SystemExit("there is no student yet; run 'python -m benchmarks.distilled distil'")
    rows = json.loads(untrained.read_text(encoding="utf-8"))
    if fault := gate(rows["base"], rows["student"]):
        raise SystemExit(f"the student fails the protocol's gate: {fault}; distil it longer")
    runs = [Run(name, seed, ARMS[name].units) for seed in options.seeds for name in options.arms]
    _do(runs, options.student, options.results)


if __name__ == "__main__":
    main()
