"""Run the study.

python -m benchmarks.chunk_vs_step run --processes 2      # hours; resumes where it stopped
python -m benchmarks.chunk_vs_step report                 # at any time, also while it runs
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from .analysis import best_rates
from .design import Run, main_runs, sweep_runs
from .measure import measure_base, measure_curves, perform, write_json
from .report import read_study, write_report
from .words import summary

RESULTS = Path(__file__).parent.parent / "results" / "chunk_vs_step"


def _perform_all(runs: list[Run], results: Path, work: Path, processes: int) -> None:
    """Do the runs that have no result yet, one thread each, and print progress."""
    left = [run for run in runs if not (results / "runs" / f"{run.name}.json").exists()]
    start = time.time()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        jobs = [
            pool.submit(perform, run, results / "curves.json", results / "runs", work)
            for run in left
        ]
        for done, job in enumerate(as_completed(jobs), 1):
            rest = (time.time() - start) / done * (len(left) - done)
            print(f"{done}/{len(left)} {job.result()}, about {rest / 60:.0f} min left", flush=True)


def run_study(results: Path, work: Path, processes: int) -> None:
    """Do whatever is not done yet."""
    torch.set_num_threads(1)
    for name, measure in {"curves.json": measure_curves, "base.json": measure_base}.items():
        if not (results / name).exists():
            write_json(results / name, measure())
    _perform_all(sweep_runs(), results, work, processes)
    rates = best_rates(read_study(results))
    print("learning rates:", {"/".join(key): rate for key, rate in rates.items()}, flush=True)
    _perform_all(main_runs(rates), results, work, processes)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.chunk_vs_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("output/chunk_vs_step"))
    options = parser.parse_args()
    if options.command == "run":
        run_study(options.results, options.work, options.processes)
    print(summary(write_report(options.results)))


if __name__ == "__main__":
    main()
