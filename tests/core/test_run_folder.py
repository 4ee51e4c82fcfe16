"""A run folder belongs to one training at a time, and free names are taken once."""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config
from small_runs import toy_run

from chunk_grpo_core.disk import lock
from chunk_grpo_core.disk.atomic import CannotWrite
from chunk_grpo_core.disk.lock import InUse, locked
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder, numbered_folder
from chunk_grpo_core.train.events import RolloutEnd
from chunk_grpo_core.watch.history import read_metrics

experiment = functools.partial(toy_run, iterations=2)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The lock


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_training_is_told_who_is_there_and_touches_nothing(tmp_path, resume):
    refused = []

    def second(event):
        if isinstance(event, RolloutEnd) and not refused:
            before = contents(tmp_path)
            with pytest.raises(FileExistsError) as caught:
                experiment(tmp_path, resume=resume, seed=99)
            refused.append(str(caught.value))
            assert contents(tmp_path) == before

    experiment(tmp_path, listener=second)
    assert refused[0].startswith(
        f"the run folder {tmp_path} is being trained by process {os.getpid()} on "
        f"{socket.gethostname()} since 2"
    )
    assert refused[0].endswith("; stop it, or choose another folder")
    assert [row["iteration"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]
    assert not (tmp_path / "lock").exists()


HOLD = """
import sys, time
from pathlib import Path
from chunk_grpo_core.disk.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_free_again(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout.readline().strip() == b"held"
    with pytest.raises(InUse, match=f"process {process.pid} on "), locked(tmp_path):
        pass
    process.kill()
    process.wait()
    assert json.loads((tmp_path / "lock").read_text())["process"] == process.pid
    experiment(tmp_path)  # what it left does not count
    assert not (tmp_path / "lock").exists()


def of_a_killed_process(folder):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    file = folder / "lock"
    file.touch()
    owner = {"process": process.pid, "host": socket.gethostname(), "since": "long ago"}
    file.write_text(json.dumps(owner | {"file": file.stat().st_ino}))


def of_a_copied_folder(folder):
    owner = {"process": 1, "host": socket.gethostname(), "since": "long ago"}
    file = folder / "lock"
    file.touch()
    file.write_text(json.dumps(owner | {"file": file.stat().st_ino + 1}))


@pytest.mark.parametrize("left", [lambda folder: None, of_a_killed_process, of_a_copied_folder])
def test_who_has_just_taken_the_lock_is_waited_for(tmp_path, monkeypatch, left):
    """A process may ask between another one's taking the lock and its writing who it is."""
    left(tmp_path)
    taken, asked = threading.Event(), threading.Event()
    owner = lock._owner

    def late(handle):
        taken.set()
        assert asked.wait(10)
        time.sleep(0.1)
        return owner(handle)

    def first():
        with locked(tmp_path):
            assert done.wait(10)

    monkeypatch.setattr(lock, "_owner", late)
    done = threading.Event()
    with ThreadPoolExecutor() as pool:
        other = pool.submit(first)
        assert taken.wait(10)
        asked.set()
        with pytest.raises(InUse, match=f"process {os.getpid()} on "), locked(tmp_path):
            pass
        done.set()
        other.result()


def test_a_folder_in_the_place_of_the_lock_is_named_with_the_way_out(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(CannotWrite, match="lock: a folder is in the way; rename it"):
        locked(tmp_path).__enter__()


def test_a_lock_whose_owner_never_says_who_it_is_is_a_lock_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_MOMENT", 0.05)
    with locked(tmp_path) as held:
        os.ftruncate(held.handle, 0)
        with pytest.raises(InUse, match="another process"), locked(tmp_path):
            pass


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with caplog.at_level(logging.WARNING, lock.__name__):
        experiment(tmp_path)
    assert "has no locks (Operation not supported): nothing keeps a second" in caplog.text


def test_what_begins_and_fails_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="prompts held out: "):
        run_experiment(
            ToyPolicy(), Brightness(), PROMPTS, ("one",), toy_config(), RunFolder(tmp_path / "a")
        )
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "b" / "c").locked(goes_on=False):
        assert (tmp_path / "b" / "c" / "lock").exists()
        raise ZeroDivisionError
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").touch()
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "kept").locked(goes_on=False):
        raise ZeroDivisionError
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["b", "kept", "mine.txt"]


def test_what_a_killed_process_left_half_written_is_deleted(tmp_path):
    experiment(tmp_path)
    halves = [tmp_path / "run.toml.77.partial", tmp_path / "checkpoints" / "step_000009.partial"]
    halves[0].write_bytes(b"half")
    halves[1].mkdir()
    (halves[1] / "adapter.safetensors").write_bytes(b"half")
    experiment(tmp_path, resume=True)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_is_moved_meanwhile_ends_the_run_and_is_not_made_anew(tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"

    def move(event):
        if isinstance(event, RolloutEnd) and event.iteration == 1 and not moved.exists():
            folder.rename(moved)

    with pytest.raises(FileNotFoundError, match="run was moved or deleted .* resume it at its new"):
        experiment(folder, listener=move)
    assert not folder.exists()
    experiment(tmp_path / "whole")
    experiment(moved, resume=True)
    rows, whole = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("moved", "whole"))
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in whole]


def test_a_folder_that_takes_the_place_of_a_moved_one_is_left_alone(tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"

    def replace(event):
        if isinstance(event, RolloutEnd) and event.iteration == 1 and not moved.exists():
            folder.rename(moved)
            folder.mkdir()

    with pytest.raises(FileNotFoundError, match="moved or deleted"):
        experiment(folder, listener=replace, checkpoint_every=9)
    assert not list(folder.iterdir())


# Free names


def test_a_name_with_a_number_is_given_once(tmp_path):
    (tmp_path / "demo-007").mkdir()
    (tmp_path / "demo-x").mkdir()
    taken = []

    def take(_):
        context = numbered_folder(tmp_path, "demo-")
        taken.append(context)
        return context.__enter__()

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(take, range(24)))
    assert sorted(path.name for path in folders) == [f"demo-{n:03d}" for n in range(8, 32)]
    (folders[0] / "run.toml").touch()
    for context in taken:
        context.__exit__(None, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["demo-007", "demo-x", folders[0].name]
    )


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(CannotWrite, match=f"cannot write {tmp_path}/file"),
        numbered_folder(tmp_path / "file", "x"),
    ):
        pass
