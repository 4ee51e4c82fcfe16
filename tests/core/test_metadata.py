"""What a prompt file says beside the prompt reaches the reward, also one behind a server."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch

from chunk_grpo_core.configfile.reading import read_config_file
from chunk_grpo_core.method.reward import RewardBatch, checked_inputs
from chunk_grpo_core.models.tiny.world import HELD_OUT, TRAIN, caption
from chunk_grpo_core.rewards import ocr
from chunk_grpo_core.rewards.remote.server import RewardServer
from chunk_grpo_core.runs.start import train

SIGN, OTHER = caption(TRAIN[0]), caption(HELD_OUT[0])
TOML = """
iterations = 2
prompts_per_iteration = 2
group_size = 2
[model]
type = "tiny"
[prompts]
file = "train.jsonl"
held_out_file = "held_out.jsonl"
[[reward]]
{reward}
[grid]
steps = 3
shift = 3.0
[plan]
chunks = "1, 1"
[lora]
rank = 2
[run]
pictures = 1
"""


def written(folder, reward):
    """A run with one text and two targets, on both sides of the split."""
    for name, text in (("train", SIGN), ("held_out", OTHER)):
        rows = [{"prompt": text, "target_text": target} for target in ("open", "shut")]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = folder / "run.toml"
    path.write_text(TOML.format(reward=reward))
    return read_config_file(path)


def rewards_of(folder):
    """Score of each held-out prompt before training, and mean reward of each iteration."""
    found = json.loads((folder / "evaluation.json").read_text())["before"]
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    return found, [json.loads(row)["reward_mean"] for row in rows]


class AlwaysOpen:
    """Reads the same word in every picture."""

    fingerprint = {"engine": "none"}

    def __call__(self, levels):
        return "OPEN"


@pytest.mark.slow
def test_two_targets_of_one_prompt_are_scored_each_with_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(ocr, "RapidOcr", lambda **settings: AlwaysOpen())
    train(written(tmp_path, 'name = "ocr"'), tmp_path / "run")
    measured, means = rewards_of(tmp_path / "run")
    targets = [prompt["metadata"]["target_text"] for prompt in measured["prompts"]]
    scores = dict(zip(targets, measured["rewards"], strict=True))
    assert scores == {"open": [1.0], "shut": [0.0]}
    assert [prompt["prompt"] for prompt in measured["prompts"]] == [OTHER, OTHER]
    assert means == [0.5, 0.5]  # both prompts in every iteration


class CountsLetters:
    """Scores the length of the target."""

    name, fingerprint = "letters", {}

    def __init__(self):
        self.seen = set()

    def score(self, images, examples):
        images, examples = checked_inputs(images, examples)
        self.seen |= set(examples)
        return RewardBatch.of(
            torch.tensor([float(len(e.metadata["target_text"])) for e in examples])
        )


@contextmanager
def lent(reward):
    with RewardServer(reward, port=0) as server:
        yield server.url


@pytest.mark.slow
def test_a_reward_server_receives_the_metadata_of_a_run(tmp_path):
    reward = CountsLetters()
    with lent(reward) as url:
        train(written(tmp_path, f'name = "remote_http"\nurl = "{url}"'), tmp_path / "run")
    seen = sorted((example.text, example.metadata["target_text"]) for example in reward.seen)
    assert seen == sorted((text, word) for text in (SIGN, OTHER) for word in ("open", "shut"))
    assert rewards_of(tmp_path / "run")[1] == [4.0, 4.0]
