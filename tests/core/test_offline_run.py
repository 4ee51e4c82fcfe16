"""A run on picks, from the command line: picks on disk, ``train``, a record that resumes."""

from __future__ import annotations

import json

import pytest
import torch
from small_runs import without_seconds
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.rewards.taste.events import new_pick
from chunk_grpo_core.rewards.taste.picks import Taste
from chunk_grpo_core.watch.history import read_metrics

pytestmark = pytest.mark.slow

CONFIG = """
algorithm = "preference"
iterations = 2
prompts_per_iteration = 2
group_size = 2
[model]
type = "tiny"
[prompts]
held_out = 2
[grid]
steps = 3
shift = "model"
[preference]
picks = "mine"
[lora]
rank = 2
[optimizer]
learning_rate = 1e-3
updates_per_rollout = 1
[run]
pictures = 1
"""


def finished(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_run_on_picks_trains_and_goes_on_although_more_is_picked(tmp_path):
    taste, generator = Taste(tmp_path / "mine"), torch.Generator().manual_seed(0)
    made = {"noise": "torch-cpu"}

    def pick(scene):
        pictures = torch.rand(2, 64, 64, 3, generator=generator)
        shown = [
            taste.keep(picture, prompt=caption(scene), seed=1, index=index, made=made)
            for index, picture in enumerate(pictures)
        ]
        taste.append(new_pick("duel", shown, 0))

    for scene in TRAIN[:3]:
        pick(scene)
    (tmp_path / "run.toml").write_text(CONFIG)
    run, other = tmp_path / "a", tmp_path / "b"
    told = json.loads(finished("train", tmp_path / "run.toml", "--out", run, "--json"))
    assert told["iterations"] == 2
    rows = read_metrics(run / "metrics.jsonl")
    assert rows[0]["preference_loss"] == pytest.approx(0.6931, abs=1e-2)
    finished("train", tmp_path / "run.toml", "--out", other, "--set", "iterations=1")
    pick(TRAIN[3])
    finished("resume", other, "--set", "iterations=2")
    again = read_metrics(other / "metrics.jsonl")
    assert without_seconds(again) == without_seconds(rows)
    assert (run / "lora.safetensors").is_file()
