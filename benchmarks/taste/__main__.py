"""Simulated people click, and heads say how well they know them. It goes on where it stopped.

python -m benchmarks.taste                    # all cases of PROTOCOL.md; about 20 processor minutes
python -m benchmarks.taste --seeds 0-4 --kinds duel    # some of them; others can run beside it
python -m benchmarks.taste --report           # REPORT.md and plots, at any time
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from .clicking import SHOWN
from .report import write_report
from .study import FIELDS, RANDOM_SEEDS, cases, perform

RESULTS = Path(__file__).parent.parent / "results" / "taste"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of all finished cases; a last line that was cut off is passed over."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [line for line in text.splitlines() if line.endswith("]")]
    return [dict(zip(FIELDS, json.loads(line), strict=True)) for line in lines]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.taste",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", default=f"0-{RANDOM_SEEDS - 1}", help="first and last")
    parser.add_argument("--kinds", nargs="+", choices=SHOWN, default=list(SHOWN))
    parser.add_argument("--report", action="store_true", help="write the report and do no more")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.report:
        files = (options.results / name for name in ("rows.jsonl", "pilot.jsonl"))
        write_report(options.results, *map(read_rows, files))
        return
    first, last = map(int, options.seeds.split("-"))
    os.makedirs(options.results, exist_ok=True)
    key = FIELDS[:5]
    done = {tuple(row[name] for name in key) for row in read_rows(options.results / "rows.jsonl")}
    left = [
        case
        for case in cases(range(first, last + 1))
        if case.kind in options.kinds and tuple(getattr(case, name) for name in key) not in done
    ]
    with (options.results / "rows.jsonl").open("a", encoding="utf-8") as file:
        for number, case in enumerate(left, 1):
            row = perform(case)
            file.write(json.dumps([row[name] for name in FIELDS]) + "\n")
            file.flush()
            if number % 100 == 0:
                print(f"{time.strftime('%H:%M:%S')} {number}/{len(left)}", flush=True)


if __name__ == "__main__":
    main()
