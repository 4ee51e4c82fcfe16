"""A demo that is killed without warning goes on to the numbers of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from chunk_grpo_core.history import read_metrics

ITERATIONS = 4


def demo(out, *more):
    command = [sys.executable, "-m", "chunk_grpo_core", "demo", "--out", str(out), "--json"]
    sizes = ["--iterations", str(ITERATIONS), "--pictures", "1"]
    return subprocess.Popen([*command, *sizes, *more], stdout=subprocess.PIPE, text=True)


def finish(process):
    printed, _ = process.communicate(timeout=280)
    assert process.returncode == 0
    return json.loads(printed)


def without_times(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(path)]


@pytest.mark.slow
def test_a_killed_demo_resumes_to_the_numbers_of_an_uninterrupted_one(tmp_path):
    whole = finish(demo(tmp_path / "whole"))
    assert whole["ratio_error_first_update"] == 0.0
    assert whole["iterations"] == ITERATIONS

    process = demo(tmp_path / "killed")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while len(read_metrics(metrics)) < ITERATIONS - 1:  # after the checkpoint, before the end
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(without_times(metrics)) < ITERATIONS

    resumed = finish(demo(tmp_path / "killed", "--resume"))
    assert without_times(metrics) == without_times(tmp_path / "whole" / "metrics.jsonl")
    for name in ("reward_before", "reward_after", "gain", "gain_ci95", "strict_after"):
        assert resumed[name] == whole[name]
    one, other = (load_file(tmp_path / run / "lora.safetensors") for run in ("whole", "killed"))
    assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)
