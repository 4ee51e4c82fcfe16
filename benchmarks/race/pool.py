"""Do runs in processes of their own, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from .run import Run, perform

__all__ = ["run_all"]


def run_all(runs: Sequence[Run], results: Path, jobs: int) -> None:
    """Do runs, so many at a time, and print progress; a lost terminal loses the half done ones."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_be_nice) as pool:
        left = [pool.submit(_timed, run, results) for run in runs]
        for done, job in enumerate(as_completed(left), 1):
            print(f"{time.strftime('%H:%M:%S')} {done}/{len(runs)} {job.result()}", flush=True)


def _timed(run: Run, results: Path) -> str:
    start = time.process_time()
    last = perform(run, results)[-1]
    seconds = time.process_time() - start
    return (
        f"{run.path} {last['units']} units, reward {last['reward']:.3f}, "
        f"clean {last['clean']:.3f}, {seconds:.0f} s"
    )


def _be_nice() -> None:
    """Workers wait for whoever else uses this machine."""
    os.nice(19)
    torch.set_num_threads(1)
