"""Two real processes on the CPU, started as users start them, against one.

What threads can show is in ``test_distributed.py``.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import flux_sources
import pytest
from environment import package
from pipeline_folders import saved
from safetensors.torch import load_file
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.watch.history import read_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TINY = """
iterations = 3
checkpoint_every = 1
prompts_per_iteration = 4
group_size = 4
[model]
type = "tiny"
[prompts]
held_out = 3
[grid]
steps = 4
shift = 3.0
[plan]
chunks = "1, 2"
[advantage]
scale = "global-std"
[objective]
clip_low = 1e-3
clip_high = 1e-3
kl_ref = 0.01
[lora]
rank = 4
[optimizer]
learning_rate = 1e-3
epochs = 2
ema_decay = 0.5
[run]
pictures = 1
"""


def start(*words, launcher):
    """Start a command of chunk-grpo behind a launcher."""
    return launched([sys.executable, "-m", *launcher, "-m", "chunk_grpo_core", *words])


def launched(command):
    """Start a program that finds the package."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    """Exit status and what it printed to both streams."""
    try:
        printed, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, printed, errors


def finished(*words, launcher=()):
    """Run a command to its end, behind a launcher or in this process; what it says of the run."""
    words = (*words, "--json")
    if launcher:
        code, printed, errors = ended(start(*words, launcher=launcher))
    else:
        done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
        code, printed, errors = done.exit_code, done.stdout, done.stderr
    assert code == 0, errors
    return json.loads(printed)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "mine.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def alone(config):
    folder = config.parent / "alone"
    finished("train", config, "--out", folder)
    return folder


def numbers(value):
    """Every number of something JSON-ready, in order, without times; nan for null."""
    if isinstance(value, dict):
        return [n for key, v in value.items() if key != "seconds" for n in numbers(v)]
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    if isinstance(value, str):
        return []
    return [math.nan if value is None else value]


def same_run(folder, other, tolerance=1e-5):
    """Metrics, scores and LoRA of two runs agree, and both left the same files."""
    rows, other_rows = (read_metrics(path / "metrics.jsonl") for path in (folder, other))
    assert [row["iteration"] for row in rows] == list(range(len(other_rows))) != []
    assert [row.keys() for row in rows] == [row.keys() for row in other_rows]
    close = {"rel": tolerance, "abs": tolerance, "nan_ok": True}
    assert numbers(rows) == pytest.approx(numbers(other_rows), **close)
    scores = [json.loads((path / "evaluation.json").read_text()) for path in (folder, other)]
    assert numbers(scores[0]) == pytest.approx(numbers(scores[1]), **close)
    one, two = (load_file(path / "lora.safetensors") for path in (folder, other))
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= tolerance
    assert max(float(factor.abs().max()) for factor in one.values()) > 1e-3
    files = [sorted(p.relative_to(path) for p in path.rglob("*")) for path in (folder, other)]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        (TORCHRUN, []),
        (TORCHRUN, ["--split-groups"]),
        (["accelerate.commands.launch", "--config_file", "fsdp2.yaml"], []),
    ],
    ids=["torchrun", "torchrun, split groups", "accelerate, FSDP2"],
)
def test_two_processes_give_the_numbers_of_one(alone, config, tmp_path, launcher, more):
    if launcher is not TORCHRUN:
        package("accelerate")
        *words, file = launcher
        launcher = [*words, str(ROOT / "configs" / "accelerate" / file), "--main_process_port=0"]
    facts = finished("train", config, "--out", tmp_path / "two", *more, launcher=launcher)
    assert facts["iterations"] == 3 and facts["ratio_error_first_update"] == 0.0
    same_run(tmp_path / "two", alone)


def test_a_run_of_one_process_goes_on_with_two(alone, config, tmp_path):
    folder = tmp_path / "longer"
    finished("train", config, "--out", folder, "--set", "iterations=1")
    finished("resume", folder, "--iterations", 3, launcher=TORCHRUN)
    same_run(folder, alone)


AFTERWARDS = """
import contextlib, pathlib, sys
from chunk_grpo_core.cli.app import app
with contextlib.suppress(SystemExit):
    app(sys.argv[1:])
tasks = pathlib.Path("/proc/self/task").glob("*/comm")
print("left:", [name for task in tasks if "gloo" in (name := task.read_text())])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_no_thread_that_talked_lives_when_a_run_is_over(config, tmp_path):
    """Such a thread may abort Python when it ends, and a whole run with it."""
    script = tmp_path / "afterwards.py"
    script.write_text(AFTERWARDS)
    words = ["train", config, "--out", tmp_path / "new", "--set", "iterations=1"]
    process = launched([sys.executable, "-m", *TORCHRUN, script, *words])
    code, printed, errors = ended(process)
    assert code == 0, errors
    assert [line for line in printed.splitlines() if "left:" in line] == ["left: []"] * 2


def worker_of(launcher, rank):
    """The process of that rank below a launcher (Linux)."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = entry.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            environment = entry.joinpath("environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended in the meantime
        if int(parent) == launcher.pid and f"RANK={rank}".encode() in environment:
            return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize(("rank", "more"), [(0, []), (1, ["--shard"])])
def test_when_one_process_is_killed_the_other_ends_and_one_goes_on(
    alone, config, tmp_path, rank, more
):
    folder = tmp_path / "killed"
    process = start("train", config, "--out", folder, *more, launcher=TORCHRUN)
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step_000001")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed = time.monotonic()
    os.kill(worker_of(process, rank), signal.SIGKILL)
    code, _, errors = ended(process)
    assert code != 0 and time.monotonic() - killed < 30
    says_so = f"error (process {1 - rank}):" in errors
    is_aborted = bool(more) and "SIGABRT" in errors  # by PyTorch, in a thread of a sharded backward
    assert says_so or is_aborted, errors
    if says_so:
        assert "What the run folder holds is whole; go on with: chunk-grpo resume" in errors
    assert len(read_metrics(folder / "metrics.jsonl")) < 3
    finished("resume", folder)
    same_run(folder, alone)


def test_a_launcher_that_is_told_to_end_loses_no_iteration(alone, config, tmp_path):
    folder = tmp_path / "told"
    words = ["train", config, "--out", folder, "--set", "checkpoint_every=10"]
    process = start(*words, launcher=TORCHRUN)
    deadline = time.monotonic() + 120
    while not read_metrics(folder / "metrics.jsonl"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    told = time.monotonic()
    process.terminate()
    code, _, errors = ended(process)
    assert code != 0 and time.monotonic() - told < 30
    assert "What the run folder holds is whole; go on with: chunk-grpo resume" in errors
    done = RunFolder(folder).checkpoints.load().iteration
    assert 1 <= done == len(read_metrics(folder / "metrics.jsonl")) < 3
    finished("resume", folder, "--set", "checkpoint_every=1")
    same_run(folder, alone)


def test_prompts_that_two_processes_cannot_share_are_refused(config, tmp_path):
    words = ["train", config, "--out", tmp_path / "new", "--set", "prompts_per_iteration=3"]
    code, _, errors = ended(start(*words, launcher=TORCHRUN))
    assert code != 0 and not (tmp_path / "new").exists()
    assert (
        "prompts_per_iteration is 3, which 2 processes cannot share evenly; set it to 2" in errors
    )


def test_a_process_that_hangs_is_waited_for_no_longer_than_asked(config, tmp_path):
    folder = tmp_path / "stuck"
    words = ["train", config, "--out", folder, "--timeout", "25", "--set", "iterations=50"]
    process = start(*words, launcher=TORCHRUN)
    deadline = time.monotonic() + 120
    while not read_metrics(folder / "metrics.jsonl"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(stopped := worker_of(process, 1), signal.SIGSTOP)
    try:
        line = ""
        while "error (process 0):" not in line:
            assert time.monotonic() < deadline
            line = process.stderr.readline()
    finally:
        os.kill(stopped, signal.SIGKILL)
    assert "does not answer" in line and "chunk-grpo resume" in line
    assert ended(process)[0] != 0


def test_sharding_flux_files_changes_no_bit(tmp_path):
    keys = flux_sources.write_single_files(tmp_path)
    paths = "\n".join(f"{name} = {json.dumps(path)}" for name, path in keys.items())
    file = tmp_path / "flux.toml"
    file.write_text(
        f'{TINY.replace("tiny", "flux")}\n[reward]\nname = "target_colour"\n'.replace(
            "[prompts]",
            f'{paths}\nweights = "float32"\nwidth = 64\nheight = 64\nmax_tokens = 8\n'
            'text_cache = "cache"\n[prompts]\ntext = ["a fox", "a cat", "a cow", "owls", "ants"]',
        )
    )
    small = ["--set", "iterations=2", "--set", "prompts.held_out=2"]
    finished("train", file, "--out", tmp_path / "one", *small, launcher=TORCHRUN)
    finished("train", file, "--out", tmp_path / "two", *small, "--shard", launcher=TORCHRUN)
    same_run(tmp_path / "two", tmp_path / "one", tolerance=0.0)
    words = ["train", file, "--out", tmp_path / "new", "--shard", "--set", "model.weights=fp8"]
    code, _, errors = ended(start(*words, launcher=TORCHRUN))
    assert code != 0 and "model.weights is fp8, which cannot be spread" in errors


def test_sharding_a_pipeline_changes_no_bit(tmp_path):
    """Krea 2, which has stacks of blocks inside a module."""
    family = "krea2"
    if not hasattr(package("diffusers"), "Krea2Pipeline"):
        pytest.skip("needs diffusers 0.39")
    saved(family, tmp_path / "small")
    file = tmp_path / "small.toml"
    file.write_text(
        f'self_test = false\n{TINY.replace("tiny", family)}\n[reward]\nname = "target_colour"\n'
        .replace(
            "[prompts]",
            'path = "small"\nweights = "float32"\nwidth = 64\nheight = 64\nmax_tokens = 16\n'
            'text_cache = "cache"\n[prompts]\ntext = ["a fox", "a cat", "a cow", "owls", "ants"]',
        )
    )  # fmt: skip
    small = ["--set", "iterations=2", "--set", "prompts.held_out=2"]
    finished("train", file, "--out", tmp_path / "one", *small, launcher=TORCHRUN)
    finished("train", file, "--out", tmp_path / "two", *small, "--shard", launcher=TORCHRUN)
    same_run(tmp_path / "two", tmp_path / "one", tolerance=0.0)
