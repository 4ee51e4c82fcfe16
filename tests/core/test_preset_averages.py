"""How much of what was trained the averages of the presets keep, beside their sources' loops.

The share is that of the last weights in the saved LoRA, for weights that grow linearly.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from chunk_grpo_core.presets import PRESETS, preset_config
from chunk_grpo_core.train.optimizer import AdapterOptimizer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "units.md").read_text(encoding="utf-8")
AVERAGED = [
    name
    for name, preset in PRESETS.items()
    if any(s.key == "optimizer.ema_decay" and s.value is not None for s in preset.values)
]
MICRO_BATCHES = 48 // (32 * 3 // 24) // 2
"""Of an update of Flow-GRPO on FLUX: 48 groups of 24 pictures on 32 GPUs with 3 each, halved."""
DECAY_OF_FLOW_GRPO = 0.9 ** (MICRO_BATCHES / 8)


def optimizer_and_updates(name, iterations):
    config = preset_config(name, iterations=iterations)
    updates = iterations * config.optimizer.updates_per_rollout * config.optimizer.epochs
    return config.optimizer, updates


def share_kept(settings, updates):
    """A constant gradient makes AdamW move every number by the learning rate in every update."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AdapterOptimizer([parameter], settings)
    for update in range(updates):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step(update)
    last = parameter.item()
    optimizer.finish()
    return parameter.item() / last


def share_in_flow_grpo(updates):
    """Its loop: after every micro-batch ``ema.step`` with the count g of updates done; it takes the
    weights in when g + 1 is a multiple of 8, with decay min((1 + g) / (10 + g), 0.9)."""
    average = 0.0
    for micro_batch in range(1, updates * MICRO_BATCHES + 1):
        done = micro_batch // MICRO_BATCHES
        if (done + 1) % 8 == 0:
            average += (1 - min((1 + done) / (10 + done), 0.9)) * (done - average)
    return average / updates


def share_in_dance_grpo(updates):
    """Its loop: a constant decay of 0.995 after every iteration, which has two updates."""
    average = 0.0
    for done in range(2, updates + 1, 2):
        average += (1 - 0.995) * (done - average)
    return average / updates


SOURCES = {
    "safe-lora": share_in_flow_grpo,
    "flow-grpo": share_in_flow_grpo,
    "dance-grpo": share_in_dance_grpo,
}


@pytest.mark.parametrize("iterations", [10, 30, 150])
@pytest.mark.parametrize("name", AVERAGED)
def test_the_average_of_a_preset_keeps_what_was_trained(name, iterations):
    settings, updates = optimizer_and_updates(name, iterations)
    assert share_kept(settings, updates) > 0.85
    share = share_kept(replace(settings, warmup_updates=0, weight_decay=0.0), updates)
    assert share > 0.8999
    row = f"| {iterations} | {share:.2f} | {SOURCES[name](updates):.2f} |"
    assert row in PAGE.partition(f"`{name}`")[2].partition("\n\n")[2].partition("\n\n")[0], row


def test_every_preset_with_an_average_has_a_loop_to_be_compared_with():
    assert set(AVERAGED) == set(SOURCES)


@pytest.mark.parametrize("name", ["safe-lora", "flow-grpo"])
def test_the_decay_for_each_update_is_that_of_flow_grpo_s_loop(name):
    settings, _ = optimizer_and_updates(name, 1)
    assert MICRO_BATCHES == 6
    assert settings.ema_decay == pytest.approx(DECAY_OF_FLOW_GRPO, abs=5e-5)
    for updates in (160, 300, 600):  # behind the warm-up of both
        difference = share_kept(replace(settings, warmup_updates=0), updates)
        assert abs(difference - share_in_flow_grpo(updates)) < 0.02


def test_the_decay_for_each_update_is_the_root_of_dance_grpo_s():
    settings, _ = optimizer_and_updates("dance-grpo", 1)
    assert settings.ema_decay**settings.updates_per_rollout == pytest.approx(0.995, abs=1e-5)


def test_bias_correction_instead_of_the_warm_up_would_lose_half():
    decay, updates, average = DECAY_OF_FLOW_GRPO, 20, 0.0
    for done in range(1, updates + 1):
        average += (1 - decay) * (done - average)
    corrected = average / (1 - decay**updates) / updates
    assert 0.5 < corrected < 0.7 < share_kept(optimizer_and_updates("safe-lora", 10)[0], updates)
