"""Run the race. It goes on where it stopped: what is finished is read, what is half done is redone.

python -m benchmarks.race --screen --arms few-step first-chunk    # chooses among the candidates
python -m benchmarks.race --arms demo first-chunk --seeds 0-4     # the final
python -m benchmarks.race --world form --arms demo first-chunk    # the second world
python -m benchmarks.race --report                                # REPORT.md and plots, at any time
python -m benchmarks.race --smallest                              # a trial of seconds, kept nowhere
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from chunk_grpo_core.algorithms import ALGORITHMS

from .arms import ARMS, SCREENING_SEED, SCREENING_UNITS
from .pool import run_all
from .report import write_report
from .results import RESULTS, choices, read_base
from .run import Run, perform
from .worlds import WORLDS


def seeds_of(text: str) -> list[int]:
    """``0-4`` or ``0,3``, as numbers."""
    low, dash, high = text.partition("-")
    return list(range(int(low), int(high) + 1)) if dash else [int(part) for part in text.split(",")]


def _screening(arms: list[str]) -> list[Run]:
    return [
        Run(arm, index, SCREENING_SEED, SCREENING_UNITS, screening=True)
        for arm in arms
        for index in range(len(ARMS[arm].candidates))
        if len(ARMS[arm].candidates) > 1
    ]


def _final(
    arms: list[str], seeds: list[int], units: int | None, world: str, results: Path
) -> list[Run]:
    chosen = choices(results)
    if missing := [arm for arm in arms if arm not in chosen]:
        raise SystemExit(
            f"not screened yet: {', '.join(missing)}; run "
            f"'python -m benchmarks.race --screen --arms {' '.join(missing)}' first"
        )
    return [
        Run(arm, chosen[arm], seed, units or ARMS[arm].units, world)
        for seed in seeds
        for arm in arms
    ]


def _try_out(arms: list[str]) -> None:
    """One iteration of each arm on four captions, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        for arm in arms:
            run = Run(arm, 0, 0, 1, smallest=True)
            print(arm, perform(run, Path(folder))[-1])


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.race",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    able = [arm for arm in ARMS if ARMS[arm].base.get("algorithm", "chunk_grpo") in ALGORITHMS]
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=able)
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0-4"), help="0-4 or 0,3")
    parser.add_argument("--units", type=int, help="of a run; each arm's own by default")
    parser.add_argument("--world", choices=WORLDS, default="whole")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--screen", action="store_true", help="choose among the candidates")
    parser.add_argument("--report", action="store_true", help="write the report and do no more")
    parser.add_argument("--smallest", action="store_true", help="one iteration of each arm")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.smallest:
        _try_out(options.arms)
        return
    torch.set_num_threads(1)
    read_base(options.results, options.world, options.screen)
    if not options.report:
        runs = (
            _screening(options.arms)
            if options.screen
            else _final(options.arms, options.seeds, options.units, options.world, options.results)
        )
        run_all(runs, options.results, options.jobs)
    write_report(options.results)


if __name__ == "__main__":
    main()
