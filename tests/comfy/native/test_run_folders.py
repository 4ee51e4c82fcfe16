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


def test_a_full_disk_is_named_with_the_inputs_that_go_on(lab):
    training = lab.module("nodes.bridge.training")
    full = training.CannotWrite(errno.ENOSPC, "No space left on device", "output/a/checkpoints")
    with pytest.raises(OSError) as caught, training._way_on("a"):
        raise full
    assert str(caught.value) == (
        "cannot write output/a/checkpoints: no space is left on this disk; free some, then write "
        "a into run_name, turn resume on and run again"
    )
