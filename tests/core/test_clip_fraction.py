"""``clip_fraction`` of the metrics is the share of trained samples that the trust region held back.

Everything is known by hand. The velocity of a step is one number that AdamW moves by the learning
rate, far, in the first of two updates: in the second one every ratio of a moved step is almost 0,
so that exactly the samples with a negative advantage are held back. In the first update every ratio
is 1.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from fakes import ToyPolicy, toy_config
from torch import nn

from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.reward import RewardBatch
from chunk_grpo_core.train.config import OptimizerConfig
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer

REWARDS = {"one of four": (1.0, 0.0, 0.0, 0.0), "half of them": (1.0, 1.0, 0.0, 0.0)}
HELD_BACK = (3 + 2) / 8  # samples with a negative advantage
PLAN = ChunkPlan((1, 2, 2), weights=(1.0, 1.0, 0.0))  # nobody draws the third chunk
MOVING = (0, 1, 3)  # steps with a parameter: the first of each chunk


class StepAdapter(nn.ParameterDict):
    """One number for each moving step."""

    def parameters(self, recurse=True):
        return list(super().parameters(recurse))

    def disabled(self):
        return nullcontext()


_FAR = 100.0
"""How far the velocity moves in one update."""


class StepPolicy(ToyPolicy):
    """A velocity that depends on the step alone."""

    def __init__(self, sigmas):
        super().__init__()
        self.sigmas = list(sigmas)
        zero = torch.zeros(())
        self.adapter = StepAdapter({str(step): nn.Parameter(zero.clone()) for step in MOVING})

    def velocity(self, x_t, t, example):
        step = str(min(range(len(self.sigmas)), key=lambda step: abs(self.sigmas[step] - t)))
        speed = self.adapter[step] if step in self.adapter else 0.0 * self.adapter["0"]
        return (_FAR * speed).expand_as(x_t)


class Known:
    """Rewards that stand in a table."""

    name = "known"
    fingerprint = {}

    def score(self, images, examples):
        return RewardBatch.of(torch.tensor(REWARDS[examples[0].text]))


@pytest.mark.parametrize(
    ("ratio", "of_the_second_chunk"),
    [("chunk", HELD_BACK), ("step", HELD_BACK / 2)],  # only its first step moved
)
def test_clip_fraction_is_the_share_of_trained_samples_that_are_held_back(
    ratio, of_the_second_chunk
):
    config = toy_config(
        plan=PLAN,
        objective=ObjectiveConfig(ratio=ratio, clip_low=0.1, clip_high=0.1),
        optimizer=OptimizerConfig(
            learning_rate=1.0, weight_decay=0.0, updates_per_rollout=1, epochs=2
        ),
        iterations=1,
        group_size=4,
        chunk_fraction=0.67,
        self_test=False,
    )
    policy, events = StepPolicy(config.grid.sigmas), []
    Trainer(policy, Known(), tuple(REWARDS), config, listener=events.append).train()
    (row,) = [event.metrics for event in events if isinstance(event, IterationEnd)]
    assert row["ratio_error_first_update"] == 0
    updates = 2  # of which the first holds nobody back
    assert row["clip_fraction"] == [HELD_BACK / updates, of_the_second_chunk / updates, None]
