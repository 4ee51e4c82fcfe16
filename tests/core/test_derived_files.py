"""Files that are derived from a run never stop it, and never falsify what it records."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config
from small_runs import toy_run, without_seconds

from chunk_grpo_core.disk import atomic
from chunk_grpo_core.disk.atomic import CannotWrite, whole_folder, write_whole
from chunk_grpo_core.lora.files import native_lora, save_lora
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.runs.results import write_pictures
from chunk_grpo_core.runs.view import run_view
from chunk_grpo_core.train.events import IterationEnd, RunStart
from chunk_grpo_core.watch.history import MetricsWriter, read_metrics
from chunk_grpo_core.watch.newest_group import read_group

SHAPES = {
    "empty": b"",
    "cut": b'{"iteration": 0, "rew',
    "not UTF-8": b"\xff\xfe\n",
    "null": b"null\n",
    "list": b"[]\n",
    "number": b"3\n",
    "text": b'"x"\n',
    "other keys": b'{"a": 1}\n',
    "other types": b'{"iteration": "0", "iterations": -1, "samples": 5}\n',
    "nested": b'{"iteration": 0, "iterations": 0, "mean": [[]], "reward_mean": {}, "samples": [3]}'
    b"\n",
    "deep": b"[" * 100_000 + b"\n",
    "a folder": None,
    "a pipe": None,
}
FILES = ("metrics.jsonl", "held_out.jsonl", "group/group.json")


def damage(file, shape):
    if file.exists() and not file.is_file() and not file.is_dir():
        file.unlink()  # a pipe, whose writer waits for a reader
    if SHAPES[shape] is not None:
        file.write_bytes(SHAPES[shape])
    elif not file.is_dir():
        file.unlink(missing_ok=True)
        file.mkdir() if shape == "a folder" else os.mkfifo(file)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Two of three iterations."""
    folder = tmp_path_factory.mktemp("begun")
    toy_run(folder, iterations=2)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return toy_run(folder), folder


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_goes_on_beside_damaged_files(shape, begun, whole, tmp_path, caplog):
    folder = shutil.copytree(begun, tmp_path / "run")
    for name in FILES:
        damage(folder / name, shape)
    outcome = toy_run(folder, resume=True)
    of_lora, of_whole = outcome.lora_metadata(), whole[0].lora_metadata()
    for name in ("iterations", "held_out_reward", "chunk_grpo_recipe"):
        assert of_lora[name] == of_whole[name]
    assert without_seconds(outcome.rows)[-1] == without_seconds(whole[0].rows)[-1]
    assert write_pictures(outcome, RunFolder(folder))
    assert without_seconds(read_metrics(folder / "metrics.jsonl")) == without_seconds(outcome.rows)
    assert [row["iterations"] for row in read_metrics(folder / "held_out.jsonl")][-1] == 3
    assert run_view(folder)["done"] == 3 and run_view(folder)["is_measured"]
    for name in FILES:
        has_no_end = shape in ("empty", "cut") and not name.startswith("group")
        assert has_no_end or f"{folder / name} is damaged" in caplog.text
        assert has_no_end or (folder / f"{name}.damaged").exists()


def test_a_folder_where_the_evaluation_belongs_is_put_aside(begun, tmp_path, caplog):
    folder = shutil.copytree(begun, tmp_path / "run")
    file = folder / "evaluation.json"
    damage(file, "a folder")
    toy_run(folder, resume=True)
    assert json.loads(file.read_text(encoding="utf-8"))["after"]["rewards"]
    assert (folder / "evaluation.json.damaged").is_dir() and f"{file} is damaged" in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_the_monitor_names_the_file_that_is_damaged(name, begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "run")
    for shape in set(SHAPES) - {"empty", "cut", "a folder"}:
        damage(folder / name, shape)
        with pytest.raises(ValueError, match=f"{folder / name}[:,] "):
            run_view(folder)


def test_rows_that_can_be_read_are_kept(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "run")
    first, second = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(f"{second}\nnonsense\n{first}\n{second}\n")
    rows = toy_run(folder, resume=True).rows
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert [row["iteration"] for row in read_metrics(folder / "metrics.jsonl")] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["deleted", "shortened"])
def test_numbers_that_are_lost_meanwhile_are_written_again(change, whole, tmp_path):
    def listen(event):
        if isinstance(event, IterationEnd) and event.iteration == 1:
            text = (tmp_path / "metrics.jsonl").read_text()
            (tmp_path / "metrics.jsonl").unlink()
            if change == "shortened":
                (tmp_path / "metrics.jsonl").write_text(text[:50])

    outcome = toy_run(tmp_path, listener=listen)
    assert without_seconds(outcome.rows) == without_seconds(whole[0].rows)
    assert without_seconds(read_metrics(tmp_path / "metrics.jsonl")) == without_seconds(
        whole[0].rows
    )


# A disk that takes nothing


@pytest.fixture
def full(monkeypatch):
    """Every file whose path has one of these words finds the disk full."""
    words, fsync = [], atomic.os.fsync

    def no_space(handle):
        path = atomic.os.readlink(f"/proc/self/fd/{handle}")
        if any(word in path for word in words):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(atomic.os, "fsync", no_space)
    return words


@pytest.mark.skipif(not atomic.os.path.isdir("/proc/self/fd"), reason="looks into /proc")
class TestFullDisk:
    def test_derived_files_are_done_without(self, full, whole, tmp_path, caplog):
        full += ["metrics.jsonl", "held_out.jsonl", "group", "samples", "plots"]
        outcome = toy_run(tmp_path)
        assert without_seconds(outcome.rows) == without_seconds(whole[0].rows)
        assert outcome.held_out == whole[0].held_out
        assert write_pictures(outcome, RunFolder(tmp_path)) == ()
        for name in ("metrics.jsonl", "held_out.jsonl", "group/", "samples/", "plots/"):
            assert f"cannot write {tmp_path / name}".rstrip("/") in caplog.text, name
        assert caplog.text.count("metrics.jsonl: no space is left on this disk") == 1

    def test_rows_are_written_as_soon_as_there_is_room(self, full, whole, tmp_path):
        full.append("metrics.jsonl")
        rows = []

        def listen(event):
            if isinstance(event, IterationEnd):
                rows.append(read_metrics(tmp_path / "metrics.jsonl"))
                if event.iteration == 1:
                    full.clear()

        toy_run(tmp_path, listener=listen)
        assert without_seconds(rows[2]) == without_seconds(whole[0].rows)

    def test_a_checkpoint_that_finds_no_room_ends_the_run_which_goes_on_later(
        self, full, whole, tmp_path, caplog
    ):
        full.append("step_000002")
        with pytest.raises(CannotWrite) as caught:
            toy_run(tmp_path)
        where = tmp_path / "checkpoints" / "step_000002.partial" / "adapter.safetensors"
        assert str(caught.value) == (
            f"cannot write {where}: no space is left on this disk; free some"
        )
        assert caught.value.errno == errno.ENOSPC
        assert "iterations 2 to 2 are lost" in caplog.text
        assert not list(tmp_path.rglob("*.partial"))
        full.clear()
        assert without_seconds(toy_run(tmp_path, resume=True).rows) == without_seconds(
            whole[0].rows
        )


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "no space is left on this disk; free some"),
        (errno.EDQUOT, "your disk quota is used up; free some space"),
        (errno.EROFS, "this disk is read-only; make it writable"),
        (errno.EACCES, "permission denied; make the folder and its files yours to write"),
        (errno.EFBIG, "the file is too large for this disk or your limits; raise the limit"),
        (errno.ENOTDIR, "Not a directory"),
    ],
)
def test_what_cannot_be_written_is_named_with_what_to_do(number, text, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(number, errno.errorcode[number] if number != errno.ENOTDIR else text)

    monkeypatch.setattr(atomic.os, "fsync", refuse)
    with pytest.raises(CannotWrite) as caught:
        write_whole(tmp_path / "file", "x")
    assert str(caught.value) == f"cannot write {tmp_path / 'file'}: {text}"
    with pytest.raises(CannotWrite), whole_folder(tmp_path / "folder") as temporary:
        write_whole(temporary / "file", "x")
    assert list(tmp_path.iterdir()) == []


# Equal runs


def test_equal_runs_give_equal_files(tmp_path):
    for name in ("a", "b"):
        policy = ToyPolicy()
        config = toy_config(iterations=1, self_test=False)
        outcome = run_experiment(
            policy, Brightness(), PROMPTS, ("new", "newer"), config, RunFolder(tmp_path / name)
        )
        lora = native_lora(policy.adapter.state_dict(), 8.0)
        save_lora(lora, tmp_path / name / "lora.safetensors", outcome.lora_metadata())
    for file in ("lora.safetensors", "evaluation.json", "held_out.jsonl"):
        one, other = ((tmp_path / name / file).read_bytes() for name in ("a", "b"))
        assert one == other, file


@pytest.mark.slow
def test_a_lora_tells_no_paths(tmp_path):
    toy_run(tmp_path)
    outcome = toy_run(tmp_path, resume=True, iterations=4)
    assert [c["key"] for c in json.loads(outcome.lora_metadata()["chunk_grpo_changes"])] == [
        "iterations"
    ]
    assert str(tmp_path) not in json.dumps(outcome.lora_metadata())


def test_the_order_of_names_in_a_lora_does_not_matter(tmp_path):
    tensors = {"b.lora_A.weight": torch.ones(2, 3), "a.lora_A.weight": torch.zeros(2, 3)}
    facts = {name: f"{name} \U0001f600" for name in "zyxwvutsrqponm"}
    bodies = {
        save_lora(
            dict(order(tensors.items())), tmp_path / "lora.safetensors", dict(order(facts.items()))
        ).read_bytes()
        for order in (list, reversed, sorted)
        for _ in range(5)
    }
    assert len(bodies) == 1


def test_a_group_of_any_other_shape_is_named(tmp_path):
    for shape in ("null", "other keys", "nested"):
        (tmp_path / "group.json").write_bytes(SHAPES[shape])
        with pytest.raises(ValueError, match="group.json: it has no list of samples"):
            read_group(tmp_path)


def test_a_second_run_start_writes_no_row_twice(tmp_path):
    write = MetricsWriter(tmp_path / "metrics.jsonl")
    for _ in range(2):
        write(RunStart(0, 3))
        for iteration in range(3):
            write(IterationEnd(iteration, {"iteration": iteration}))
    write(RunStart(1, 3))
    write(IterationEnd(1, {"iteration": 1}))
    write(IterationEnd(1, {"iteration": 1}))
    assert [row["iteration"] for row in write.rows] == [0, 1]
