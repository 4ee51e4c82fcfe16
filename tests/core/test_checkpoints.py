"""Checkpoints that are damaged, or belong to another run, are passed over by name."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil

import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config

from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.checkpoint import Checkpoint, Checkpoints, TrainingState
from chunk_grpo_core.train.trainer import Trainer

FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")
STATE = {
    "nothing": "",
    "no JSON": "{",
    "a number": "3",
    "null": "null",
    "a list": "[]",
    "deep": "[" * 100_000,
    "empty": "{}",
    "digests": '{"sha256": []}',
    "not UTF-8": b"\xff\xfe{",
    "iteration": '{"format": 1, "run": "", "iteration": 99, "trained_with": {}, "sha256": {}}',
}


def checkpoint(iteration, value=None):
    generator = torch.Generator().manual_seed(iteration if value is None else value)
    adapter = {"a": torch.randn(4, 8, generator=generator)}
    optimizer = {"exp_avg.0": torch.randn(4, 8, generator=generator)}
    return Checkpoint(TrainingState(iteration, {"seed": 1, "x": [0.1, None]}), adapter, optimizer)


@pytest.fixture
def two(tmp_path):
    """Those of iterations 2 and 4."""
    checkpoints = Checkpoints(tmp_path, "mine")
    for iteration in (2, 4):
        checkpoints.save(checkpoint(iteration))
    return checkpoints


def test_what_is_saved_comes_back(two):
    loaded = Checkpoints(two.folder, "mine").load()
    assert loaded.state == checkpoint(4).state
    assert torch.equal(loaded.adapter["a"], checkpoint(4).adapter["a"])
    assert Checkpoints(two.folder, "mine").newest_state() == loaded.state


def passed_over(checkpoints, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = Checkpoints(checkpoints.folder, "mine").load()
    (record,) = caplog.records
    caplog.clear()
    assert loaded.iteration == 2
    assert f"the checkpoint {checkpoints.folder}/step_000004 is not used: " in record.getMessage()
    return record.getMessage()


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_older_checkpoint_is_taken(two, name, caplog):
    file = two.folder / "step_000004" / name
    body = file.read_bytes()
    flips = random.Random(0)
    for _ in range(20):
        place = flips.randrange(len(body))
        flipped = bytearray(body)
        flipped[place] ^= 1 << flips.randrange(8)
        file.write_bytes(flipped)
        assert name in passed_over(two, caplog)
    for damaged in (b"", body[: len(body) // 2], body + b"\0"):
        file.write_bytes(damaged)
        assert name in passed_over(two, caplog)
    file.unlink()
    assert f"{name} cannot be read (No such file" in passed_over(two, caplog)
    file.mkdir()
    assert f"{name} cannot be read (Is a directory)" in passed_over(two, caplog)
    file.rmdir()
    os.mkfifo(file)
    assert f"{name} cannot be read (it is a pipe" in passed_over(two, caplog)


@pytest.mark.parametrize("kind", STATE)
def test_a_state_of_any_other_shape_is_named(two, kind, caplog):
    text = STATE[kind]
    file = two.folder / "step_000004" / "state.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "state.json is damaged" in passed_over(two, caplog)


def test_tensors_of_another_checkpoint_are_noticed(two, caplog):
    shutil.copy(two.folder / "step_000002" / FILES[0], two.folder / "step_000004" / FILES[0])
    assert "adapter.safetensors is damaged (its SHA-256" in passed_over(two, caplog)


def test_a_checkpoint_under_another_number_is_stale(two, caplog):
    shutil.rmtree(two.folder / "step_000004")
    (two.folder / "step_000004").mkdir()
    for name in FILES:
        shutil.copy(two.folder / "step_000002" / name, two.folder / "step_000004" / name)
    assert "state.json says that it is of iteration 2" in passed_over(two, caplog)


def test_when_none_can_be_used_the_error_says_why_and_what_to_do(two):
    with pytest.raises(ValueError) as caught:
        Checkpoints(two.folder, "another").load()
    assert str(caught.value) == (
        f"no checkpoint in {two.folder} can be used (step_000004: it belongs to another run; "
        "step_000002: it belongs to another run). Put one back from a copy, or delete this "
        "folder: the run then begins again at its first iteration"
    )
    assert Checkpoints(two.folder / "nowhere").load() is None


def test_only_intact_checkpoints_of_the_run_are_counted_and_deleted(two):
    Checkpoints(two.folder, "other").save(checkpoint(90))
    (two.folder / "step_000004" / "state.json").write_text("{}")
    mine = Checkpoints(two.folder, "mine")
    mine.save(checkpoint(3))
    assert [path.name for path in mine.all()] == [
        "step_000002", "step_000003", "step_000004", "step_000090",
    ]  # fmt: skip
    mine.save(checkpoint(4))  # takes the place of the damaged one
    assert [path.name for path in mine.all()] == ["step_000003", "step_000004", "step_000090"]
    assert mine.load().iteration == 4


def test_numbers_of_any_length_are_in_order(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for iteration in (999_999, 1_000_000):
        checkpoints.save(checkpoint(iteration))
    assert checkpoints.load().iteration == 1_000_000


def test_a_run_goes_on_from_the_older_checkpoint_to_the_same_numbers(tmp_path, caplog):
    def trainer_of(folder):
        config = toy_config(iterations=5, checkpoint_every=2, self_test=False)
        checkpoints = folder.checkpoints
        return Trainer(ToyPolicy(), Brightness(), PROMPTS, config, checkpoints=checkpoints)

    whole, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "damaged")
    for run in (whole, folder):
        run.path.mkdir()
        trainer_of(run).train()
    file = folder.path / "checkpoints" / "step_000005" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    again = trainer_of(folder)
    assert again.resume() == 4 and "step_000005 is not used" in caplog.text
    again.train()
    for kind in ("adapter", "optimizer"):
        one, other = (getattr(run.checkpoints.load(), kind) for run in (whole, folder))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_state_says_what_it_is(two):
    state = json.loads((two.folder / "step_000004" / "state.json").read_text())
    assert (state["format"], state["run"], state["iteration"]) == (1, "mine", 4)
    assert state["sha256"].keys() == set(FILES)
