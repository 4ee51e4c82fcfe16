"""What a prompt file says beside the prompt goes through a graph to the reward."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch

from chunk_grpo_core.method.reward import RewardBatch, checked_inputs
from chunk_grpo_core.rewards.remote.server import RewardServer

from . import graphs
from .graphs import change, node, shown_text

CAPTION, OTHER, PLAIN = (
    f"a large {c} circle on a black background" for c in ("red", "blue", "green")
)
TASK = {"tag": "counting", "include": [{"class": "cup", "count": 2}]}


class Letters:
    """Scores the length of target_text; 0 where there is none."""

    name, fingerprint = "letters", {}

    def __init__(self):
        self.seen = []

    def score(self, images, examples):
        images, examples = checked_inputs(images, examples)
        self.seen += examples
        lengths = [float(len(example.metadata.get("target_text", ""))) for example in examples]
        return RewardBatch.of(torch.tensor(lengths))


@contextmanager
def lent(reward):
    with RewardServer(reward, port=0) as server:
        yield server.url


@pytest.fixture
def files(comfy_server):
    """Write prompts to train on and to measure on; on each side one text has two targets."""
    rows = {
        "targets.jsonl": [(CAPTION, {"target_text": "no"}), (CAPTION, {"target_text": "maybe"})],
        "measured.jsonl": [(OTHER, {"target_text": "yes"}), (PLAIN, TASK)],
    }
    for name, entries in rows.items():
        lines = [json.dumps({"prompt": text, **metadata}) for text, metadata in entries]
        (comfy_server.input / name).write_text("\n".join(lines))
    yield rows
    for name in rows:
        (comfy_server.input / name).unlink()


def remote(prompt, url):
    return change(prompt, "ChunkGRPO_LoadReward", name="remote_http", url=url, settings="")


def test_a_training_scores_each_of_two_targets_of_one_prompt(comfy, comfy_server, files):
    reward = Letters()
    prompt = graphs.training(run_name="two targets", iterations=1, prompts_per_iteration=2)
    texts = {"text": "", "held_out_text": "", "held_out": 2}
    texts |= {"file": "targets.jsonl", "held_out_file": "measured.jsonl"}
    with lent(reward) as url:
        comfy.run(remote(change(prompt, "ChunkGRPO_PromptSet", **texts), url), 200)
    seen = {(example.text, json.dumps(example.metadata)) for example in reward.seen}
    assert seen == {
        (text, json.dumps(dict(sorted(metadata.items()))))
        for entries in files.values()
        for text, metadata in entries
    }
    folder = comfy_server.output / "chunk_grpo" / "two targets"
    (row,) = graphs.read_lines(folder / "metrics.jsonl")
    assert row["reward_mean"] == (len("no") + len("maybe")) / 2


def score_graph(prompt, url):
    return remote(
        {
            "tiny": node("ChunkGRPO_LoadTinyFlux"),
            "set": node(
                "ChunkGRPO_PromptSet", clip=["tiny", 1], text="", held_out_text="", held_out=2,
                split_seed=0, guidance=3.5, file="targets.jsonl", held_out_file="measured.jsonl",
            ),
            "reward": node("ChunkGRPO_LoadReward", name="remote_http", colour="#2060c0"),
            "pictures": node("EmptyImage", width=16, height=16, batch_size=2, color=0),
            "score": node(
                "ChunkGRPO_ScoreImages", reward=["reward", 0], images=["pictures", 0],
                prompt=prompt, prompts=["set", 0],
            ),
        },
        url,
    )  # fmt: skip


def test_pictures_are_scored_with_the_metadata_of_a_prompt_set(comfy, files):
    reward = Letters()
    with lent(reward) as url:
        run = comfy.run(score_graph(f"{OTHER}\nanother prompt", url))
        refused = comfy.run(score_graph(CAPTION, url), check=False)
    scores = [float(line.split("\t")[1]) for line in shown_text(run, "score").splitlines()]
    assert scores == [3.0, 0.0]
    assert f"prompts holds '{CAPTION}' 2 times, with different metadata" in refused.error
