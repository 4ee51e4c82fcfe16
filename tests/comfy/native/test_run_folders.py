"""Run folders of Train LoRA: one training in each, and how to go on when a disk is full."""

from __future__ import annotations

import errno
import tempfile
from contextlib import contextmanager

import pytest


@contextmanager
def output_in(folder):
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(folder)
    try:
        yield
    finally:
        folder_paths.set_output_directory(before)


def test_a_run_folder_belongs_to_one_training_and_free_names_are_given_once(lab):
    training = lab.module("nodes.bridge.training")
    unnamed, mine = training.RunRequest("", False), training.RunRequest("mine", False)
    with tempfile.TemporaryDirectory() as folder, output_in(folder):
        with training.open_run(unnamed) as one, training.open_run(unnamed) as two:
            assert (one.path.name, two.path.name) == ("run_0001", "run_0002")
            assert (one.path / "lock").exists()
        assert not one.path.exists() and not two.path.exists()  # nothing was written
        with training.open_run(mine) as held:
            with (
                pytest.raises(FileExistsError, match="mine is being trained by process .* since"),
                training.open_run(mine),
            ):
                pass
            held.run_file.touch()
        with pytest.raises(ValueError, match="exists already; turn resume on"):
            training.open_run(mine).__enter__()
        with pytest.raises(ValueError, match="no run called 'other' to resume"):
            training.open_run(training.RunRequest("other", True)).__enter__()


def ended(training, folder, error, *, is_new=True):
    """The error as the node tells it."""
    with pytest.raises(type(error)) as caught, training._ended_well(folder, is_new=is_new):
        raise error
    return str(caught.value)


def failed_start(training, path):
    """A run folder as it is when the first measurement has failed."""
    folder = training.RunFolder(path)
    path.mkdir()
    for name in ("run.toml", "held_out.jsonl", "lock"):
        (path / name).write_text("something")
    for name in ("group", "samples", "checkpoints"):
        (path / name).mkdir()
    (folder.group / "group.json").write_text("{}")
    return folder


def test_a_training_that_failed_before_its_first_iteration_leaves_nothing(lab, tmp_path):
    training = lab.module("nodes.bridge.training")
    folder = failed_start(training, tmp_path / "a")
    assert ended(training, folder, ValueError("wrong")) == "wrong"
    assert [path.name for path in folder.path.iterdir()] == ["lock"]


@pytest.mark.parametrize("kept", ["metrics.jsonl", "checkpoints/step_000001", "my notes.txt"])
def test_what_is_worth_keeping_is_kept(lab, tmp_path, kept):
    training = lab.module("nodes.bridge.training")
    folder = failed_start(training, tmp_path / "a")
    (folder.path / kept).write_text("something")
    before = sorted(folder.path.rglob("*"))
    ended(training, folder, ValueError("wrong"))
    assert sorted(folder.path.rglob("*")) == before


def test_a_resumed_or_cancelled_run_stays(lab, tmp_path):
    from comfy.model_management import InterruptProcessingException

    training = lab.module("nodes.bridge.training")
    folder = failed_start(training, tmp_path / "a")
    ended(training, folder, ValueError("wrong"), is_new=False)
    ended(training, folder, InterruptProcessingException())
    assert folder.run_file.exists()


def test_a_full_disk_is_named_with_the_inputs_that_go_on(lab, tmp_path):
    training = lab.module("nodes.bridge.training")
    full = training.CannotWrite(errno.ENOSPC, "No space left on device", "output/a/checkpoints")
    folder = failed_start(training, tmp_path / "a")
    said = "cannot write output/a/checkpoints: no space is left on this disk; free some, then "
    (folder.path / "metrics.jsonl").write_text("{}")
    with pytest.raises(OSError) as caught, training._ended_well(folder, is_new=True):
        raise full
    assert str(caught.value) == f"{said}write a into run_name, turn resume on and run again"
    (folder.path / "metrics.jsonl").unlink()
    (folder.path / "my notes.txt").touch()
    with pytest.raises(OSError, match="turn resume on"), training._ended_well(folder, is_new=True):
        raise full
    folder.run_file.unlink()  # there is nothing to resume, whatever else lies there
    with pytest.raises(OSError, match="then run again"), training._ended_well(folder, is_new=True):
        raise full
    (folder.path / "my notes.txt").unlink()
    folder.run_file.touch()
    with pytest.raises(OSError) as caught, training._ended_well(folder, is_new=True):
        raise full
    assert str(caught.value) == f"{said}run again"
