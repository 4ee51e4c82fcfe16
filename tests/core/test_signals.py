"""A signal ends a training where nothing is lost, and says how to go on."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_runs import TINY, toy_run, without_seconds
from typer.testing import CliRunner

from chunk_grpo_core.cli import signals as module
from chunk_grpo_core.cli.app import app
from chunk_grpo_core.cli.signals import Stopped, stop_signals
from chunk_grpo_core.runs import start as begin
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.checkpoint import Checkpoints
from chunk_grpo_core.train.events import EvaluationProgress, IterationEnd, PhaseProgress, RolloutEnd
from chunk_grpo_core.watch.history import read_metrics

pytestmark = pytest.mark.usefixtures("usual_signals")

ALL = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


# Handlers


@pytest.mark.parametrize("number", ALL)
def test_a_signal_is_remembered_and_raised_where_the_run_asks(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {number.name}"), stop_signals() as signals:
        signals.check()
        signal.raise_signal(number)  # raises nothing here
        signal.raise_signal(number)  # many programs send or pass on two at once
        signals.check()
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            signals.check()
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# Moments


experiment = functools.partial(toy_run, checkpoint_every=2, evaluate_every=1)


def is_measuring(which):
    return lambda event: isinstance(event, EvaluationProgress) and event.which == which


#: Name -> what is going on when the signal comes, and how many iterations are whole by then.
MOMENTS = {
    "measuring before": (is_measuring("before"), 0),
    "first rollout": (lambda e: isinstance(e, RolloutEnd) and e.iteration == 0, 0),
    "rollout": (lambda e: isinstance(e, RolloutEnd) and e.iteration == 1, 1),
    "update": (lambda e: isinstance(e, PhaseProgress) and e.iteration == 1 and e.fraction > 0.5, 1),
    "end of an iteration": (lambda e: isinstance(e, IterationEnd) and e.iteration == 0, 1),
    "measuring in between": (is_measuring("during"), 1),
    "end of the last one": (lambda e: isinstance(e, IterationEnd) and e.iteration == 2, 3),
    "measuring after": (is_measuring("after"), 3),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, without_seconds(experiment(folder).rows)


def same_files(folder, other):
    for name in ("held_out.jsonl", "evaluation.json"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    one, two = (RunFolder(path).checkpoints.load() for path in (folder, other))
    for kind in ("adapter", "optimizer"):
        left, right = getattr(one, kind), getattr(two, kind)
        assert all((left[name] == right[name]).all() for name in left.keys() | right.keys())


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_loses_nothing(moment, whole, tmp_path):
    is_now, done = MOMENTS[moment]
    with pytest.raises(Stopped), stop_signals() as signals:
        experiment(
            tmp_path,
            listener=lambda event: is_now(event) and signal.raise_signal(signal.SIGTERM),
            check_cancel=signals.check,
        )
    newest = RunFolder(tmp_path).checkpoints.load()
    rows = without_seconds(read_metrics(tmp_path / "metrics.jsonl"))
    assert (newest.iteration if newest else 0) == len(rows) >= done
    assert len(rows) <= done + 1  # an update that has begun may be the last step of its iteration
    assert without_seconds(experiment(tmp_path, resume=True).rows) == whole[1]
    same_files(tmp_path, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [KeyboardInterrupt, None])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_while_a_checkpoint_is_written_loses_nothing(
    kind, when, whole, tmp_path, monkeypatch
):
    """Also KeyboardInterrupt, which a program of one's own may get anywhere."""
    save, calls = Checkpoints.save, []

    def interrupted(self, checkpoint):
        calls.append(checkpoint.iteration)
        path = save(self, checkpoint) if when == "after" or len(calls) > 1 else None
        if len(calls) == 1:
            if kind:
                raise kind
            signal.raise_signal(signal.SIGTERM)
            path = path or save(self, checkpoint)
        return path

    monkeypatch.setattr(Checkpoints, "save", interrupted)
    with pytest.raises(kind or Stopped), stop_signals() as signals:
        experiment(tmp_path, check_cancel=signals.check)
    assert RunFolder(tmp_path).checkpoints.load().iteration == 2
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert without_seconds(experiment(tmp_path, resume=True).rows) == whole[1]


# Real processes

CONFIG = f"""
iterations = 4
checkpoint_every = 10
evaluate_every = 2
{TINY}
[optimizer]
learning_rate = 1e-2
[run]
pictures = 1
"""
ROOT = Path(__file__).resolve().parent.parent.parent


def start(*words, code="from chunk_grpo_core.__main__ import main; main()", **options):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_rows(process, folder, count):
    deadline = time.monotonic() + 200
    while len(read_metrics(folder / "metrics.jsonl")) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished(*words):
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The configuration, and the run that nobody stopped."""
    config = tmp_path_factory.mktemp("tiny") / "mine.toml"
    config.write_text(CONFIG)
    finished("train", config, "--out", config.parent / "whole")
    return config, config.parent / "whole"


def same_run(folder, other):
    rows = [without_seconds(read_metrics(path / "metrics.jsonl")) for path in (folder, other)]
    assert rows[0] == rows[1]
    assert [row["iterations"] for row in read_metrics(folder / "held_out.jsonl")] == [0, 2, 4]
    same_files(folder, other)
    files = [load_file(path / "lora.safetensors") for path in (folder, other)]
    assert all((files[0][name] == files[1][name]).all() for name in files[0])


def stop(config, folder, number):
    """Stop a run after its first iteration; what it printed."""
    process = start("train", config, "--out", folder)
    wait_for_rows(process, folder, 1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + number, errors
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("number", ALL)
def test_a_stopped_process_says_how_to_go_on(number, trained, tmp_path):
    folder = tmp_path / "stopped"
    errors = stop(trained[0], folder, number)
    last = errors.splitlines()[-1]
    assert last == f"stopped by {number.name}; go on with: chunk-grpo resume {folder}"
    assert "a second signal ends at once" in errors and "Traceback" not in errors
    done = RunFolder(folder).checkpoints.load().iteration
    assert 1 <= done == len(read_metrics(folder / "metrics.jsonl")) < 4
    assert not (folder / "lock").exists()
    if number is signal.SIGTERM:
        resume_twice_at_once(folder)
        same_run(folder, trained[1])
        one, other = ((path / "lora.safetensors").read_bytes() for path in (folder, trained[1]))
        assert one == other


def resume_twice_at_once(folder):
    """One works, and the other says who holds the folder."""
    both = [start("resume", folder) for _ in range(2)]
    texts = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], texts
    (loser,) = (text for process, text in zip(both, texts, strict=True) if process.returncode)
    (winner,) = (process for process in both if process.returncode == 0)
    assert re.search(
        rf"error: the run folder {folder} is being trained by process {winner.pid} on .* since "
        r".*; stop it, or choose another folder",
        loser,
    )


@pytest.mark.slow
def test_a_second_signal_ends_at_once_and_leaves_the_folder_free(trained, tmp_path):
    config, whole = trained
    folder = tmp_path / "stopped"
    slow = (
        "import time; from chunk_grpo_core.models.tiny.reward import TinyWorldReward as Reward\n"
        "from chunk_grpo_core.__main__ import main\n"
        "score, calls = Reward.score, []\n"
        "def hanging(*words):\n"
        "    calls.append(0)\n"
        "    print('scoring', flush=True) if len(calls) == 7 else None\n"
        "    [time.sleep(0.1) for _ in range(3000) if len(calls) == 7]\n"
        "    return score(*words)\n"
        "Reward.score = hanging\n"
        "main()\n"
    )
    process = start("train", config, "--out", folder, code=slow)
    assert process.stdout.readline() == "scoring\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(2 * module._GRACE)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
    process.communicate()
    finished("resume", folder)
    same_run(folder, whole)


@pytest.mark.slow
def test_a_run_without_a_folder_takes_the_next_name_and_leaves_none_that_is_empty(
    trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine-007").mkdir(parents=True)
    seen = []

    def stop(*words, **options):
        seen.extend(path.name for path in sorted((tmp_path / "runs").rglob("*")))
        raise KeyboardInterrupt

    monkeypatch.setattr(begin, "load_policy", stop)
    done = CliRunner().invoke(app, ["train", str(trained[0])])
    assert (done.exit_code, done.stderr) == (130, "stopped; nothing was written\n")
    assert seen == ["mine-007", "mine-008", "lock"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine-007"]


LIMITED = """
import resource
from chunk_grpo_core.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
def test_a_disk_that_takes_no_checkpoint_is_named_with_the_command_to_go_on(trained, tmp_path):
    config, whole = trained
    folder = tmp_path / "full"
    process = start("train", config, "--out", folder, "--set", "checkpoint_every=1", code=LIMITED)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1 and "Traceback" not in errors
    assert re.search(
        rf"error: cannot write {folder}/checkpoints/step_000001.partial/\w+.safetensors: the file "
        rf"is too large for .*; raise the limit; go on with: chunk-grpo resume {folder}",
        errors.replace("\n", " "),
    )
    assert not list(folder.rglob("*.partial"))
    finished("resume", folder, "--set", "checkpoint_every=10")
    rows = without_seconds(read_metrics(folder / "metrics.jsonl"))
    assert rows == without_seconds(read_metrics(whole / "metrics.jsonl"))
