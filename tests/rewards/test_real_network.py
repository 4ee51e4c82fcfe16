"""Chunk-GRPO with a reward that is a real, trained network: a text detector from the wild.

The generator is the tiny FLUX, whose pictures hold no text; the reward asks how much its pictures
look like text to the detection network of PP-OCR, which comes inside the package ``rapidocr``. What
this shows: a network that knows nothing of this project gives scores with spread inside a group,
and training steps on them are finite and start at a ratio of exactly 1. It does not show that
pictures get better, nor, in two iterations, that the score rises.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from environment import package

from chunk_grpo_core import (
    LoraConfig,
    OptimizerConfig,
    TrainConfig,
    Trainer,
    read_plan,
    shifted_grid,
)
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.rewards.function import FunctionReward
from chunk_grpo_core.train.events import IterationEnd, RolloutEnd


@pytest.fixture(scope="module")
def textness():
    """Mean log-odds of text over the pixels, about -14 (sure that there is none) to 14."""
    onnxruntime = package("onnxruntime")
    rapidocr = package("rapidocr")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    (weights,) = (Path(rapidocr.__file__).parent / "models").glob("*_det_*.onnx")
    session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()

    def score(images, examples):
        pixels = (images.flip(-1).permute(0, 3, 1, 2) * 2 - 1).contiguous()  # blue, green, red
        (text,) = session.run(None, {entry.name: pixels.numpy()})
        return torch.logit(torch.from_numpy(text), eps=1e-6).mean((1, 2, 3))

    return FunctionReward(score, name="textness", fingerprint={"network": weights.name})


def test_the_network_tells_text_from_a_blank_sheet(textness):
    from PIL import Image, ImageDraw, ImageFont

    from chunk_grpo_core.rewards.picture_files import from_pil

    sheet = Image.new("RGB", (192, 64), "white")
    blank = from_pil(sheet)
    ImageDraw.Draw(sheet).text((8, 8), "HELLO", fill="black", font=ImageFont.load_default(44))
    batch = textness.score(torch.stack([blank, from_pil(sheet)]), ["", ""])
    assert batch.values[1] > batch.values[0] + 2.0


@pytest.mark.slow
def test_the_tiny_flux_trains_on_the_networks_scores(textness):
    package("diffusers")
    package("peft")
    from chunk_grpo_core.models.tiny.policy import tiny_policy

    config = TrainConfig(
        grid=shifted_grid(4, shift=3.0),
        plan=read_plan("1, 2", 3),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        lora=LoraConfig(rank=4, alpha=8.0),
        iterations=2,
        prompts_per_iteration=2,
        group_size=4,
        seed=3,
    )
    rows, groups = [], []

    def listen(event):
        if isinstance(event, IterationEnd):
            rows.append(event.metrics)
        elif isinstance(event, RolloutEnd):
            groups.append(event.rewards)

    policy = tiny_policy(config.lora, config.seed)
    before = policy.adapter.state_dict()
    Trainer(policy, textness, [caption(s) for s in TRAIN[:2]], config, listener=listen).train()

    assert len(rows) == 2 and len(groups) == 4
    for scores in groups:
        assert torch.isfinite(scores).all() and scores.std() > 0.05
    for row in rows:
        assert row["masked_scores"] == 0
        assert row["ratio_error_first_update"] == 0.0
        assert math.isfinite(row["grad_norm"]) and row["grad_norm"] > 0.0
    after = policy.adapter.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in after)
