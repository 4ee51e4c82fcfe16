"""TensorBoard and Weights & Biases get every number, at its iteration, also after a resume."""

from __future__ import annotations

import sys
import time
import types

import pytest

from chunk_grpo_core.train.events import IterationEnd, RunStart
from chunk_grpo_core.watch.trackers import TRACKERS, numbers_of

ROW = {
    "iteration": 4,
    "reward_mean": 0.5,
    "rewards": {"clip": {"mean": 0.25, "masked": 0}},
    "ratio_mean": [1.0, None, 0.75],
    "peak_memory_gib": None,
    "note": "text",
    "flag": True,
}
NUMBERS = {
    "reward_mean": 0.5,
    "rewards/clip/mean": 0.25,
    "rewards/clip/masked": 0,
    "ratio_mean/0": 1.0,
    "ratio_mean/2": 0.75,
}


def play(listener, first=0):
    listener(RunStart(first, 6))
    for iteration in range(first, 6):
        listener(IterationEnd(iteration, ROW))


def test_nested_rows_become_flat_names():
    assert numbers_of(ROW) == NUMBERS


def test_tensorboard_drops_what_is_done_again(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def flush(self):
            calls.append("flush")

    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    play(TRACKERS["tensorboard"](tmp_path), first=5)
    written = [(name, value, 5) for name, value in NUMBERS.items()]
    assert calls == [(str(tmp_path / "tensorboard"), 5), *written, "flush"]


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    runs = []

    class Run:
        def __init__(self, **settings):
            self.settings, self.rows, self.is_finished = settings, {}, False
            runs.append(self)

        def log(self, row, step):
            assert not self.is_finished
            self.rows[step] = row

        def finish(self):
            self.is_finished = True

    module = types.ModuleType("wandb")
    module.init = Run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    play(TRACKERS["wandb"](tmp_path / "one"))
    play(TRACKERS["wandb"](tmp_path / "one"), first=3)
    play(TRACKERS["wandb"](tmp_path / "two"))
    one, again, two = (run.settings for run in runs)
    assert one == again and one["id"] != two["id"] and one["resume"] == "allow"
    assert list(runs[0].rows) == [0, 1, 2, 3, 4, 5] and list(runs[1].rows) == [3, 4, 5]
    assert runs[0].rows[2] == NUMBERS and all(run.is_finished for run in runs)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"chunk-grpo-core\[tracking\]"):
        TRACKERS[name](tmp_path)


def test_the_real_tensorboard_keeps_every_number_at_its_iteration(tmp_path):
    """Where it is installed."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    play(TRACKERS["tensorboard"](tmp_path))
    events = loading.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(NUMBERS)
    for name, value in NUMBERS.items():
        assert [(e.step, e.value) for e in events.Scalars(name)] == [(i, value) for i in range(6)]


def test_the_real_wandb_takes_the_calls(tmp_path, monkeypatch):
    """Where it is installed; without network, so it keeps the run in a file."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    play(TRACKERS["wandb"](tmp_path))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + 60  # its own process writes
    while not all(name.encode() in file.read_bytes() for name in NUMBERS):
        assert time.monotonic() < end, "the numbers are not in wandb's file"
        time.sleep(0.1)
