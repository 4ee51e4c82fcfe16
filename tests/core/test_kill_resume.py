"""A demo that is killed without warning goes on to the numbers of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file
from small_runs import without_seconds
from typer.testing import CliRunner

from chunk_grpo_core.cli import demo
from chunk_grpo_core.cli.app import app
from chunk_grpo_core.watch.history import read_metrics

ITERATIONS = 4
HELD_OUT = 8  # captions; all 96 are most of the time of a run as short as this
SHORT = f"""
from chunk_grpo_core.cli import demo
from chunk_grpo_core.__main__ import main
demo.HELD_OUT = demo.HELD_OUT[:{HELD_OUT}]
main()
"""


def words(out, *more):
    sizes = ["--iterations", str(ITERATIONS), "--pictures", "1"]
    return ["demo", "--out", str(out), "--json", *sizes, *more]


def finished(out, *more):
    done = CliRunner().invoke(app, words(out, *more), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def without_times(path):
    return without_seconds(read_metrics(path))


@pytest.mark.slow
def test_a_killed_demo_resumes_to_the_numbers_of_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "HELD_OUT", demo.HELD_OUT[:HELD_OUT])
    whole = finished(tmp_path / "whole")
    assert whole["ratio_error_first_update"] == 0.0
    assert whole["iterations"] == ITERATIONS

    command = [sys.executable, "-c", SHORT, *words(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while len(read_metrics(metrics)) < ITERATIONS - 1:  # after the checkpoint, before the end
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(without_times(metrics)) < ITERATIONS

    resumed = finished(tmp_path / "killed", "--resume")
    assert without_times(metrics) == without_times(tmp_path / "whole" / "metrics.jsonl")
    for name in ("reward_before", "reward_after", "gain", "gain_ci95", "strict_after"):
        assert resumed[name] == whole[name]
    one, other = (load_file(tmp_path / run / "lora.safetensors") for run in ("whole", "killed"))
    assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)
