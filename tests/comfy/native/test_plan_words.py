"""Plan Chunks: words that fit any number of steps need no curve; the training fills them in."""

from __future__ import annotations

import pytest


def plan(lab, chunk_sizes, weights="uniform"):
    return lab.module("nodes.dynamics").PlanChunks.execute(chunk_sizes, weights, False).args


@pytest.mark.parametrize(
    ("text", "sizes"), [("step", (1,) * 6), ("whole", (6,)), ("size 4", (4, 2))]
)
def test_a_word_becomes_a_plan_of_the_steps_that_train(lab, text, sizes):
    given, plot = plan(lab, text)
    config = lab.module("chunk_grpo_core.train.config").TrainConfig
    grid = lab.module("chunk_grpo_core.method.schedule").shifted_grid(7)
    made = config.of({"grid": grid, "plan": given}).plan
    assert made.sizes == sizes and made.weights is None
    assert plot.shape[0] == 1 and plot.shape[-1] == 3


@pytest.mark.parametrize(
    ("text", "weights", "word"),
    [
        ("adaptive", "uniform", "read off a curve"),
        ("cut 4", "uniform", "read off a curve"),
        ("step", "curve", "how many chunks 'step' gives is not known"),
        ("step", "0.5, 0.5", "write 'uniform'"),
        ("steps", "uniform", "the chunk plan is 'steps'"),
    ],
)
def test_what_needs_a_curve_or_a_known_number_says_so(lab, text, weights, word):
    try:
        plan(lab, text, weights)
    except ValueError as error:
        assert word in str(error)
    else:
        raise AssertionError(f"planned {text} with {weights}")
