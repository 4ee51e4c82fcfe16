"""A Python function as a reward."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chunk_grpo_core.method.reward import RewardFailed
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards.function import FunctionReward

IMAGES = torch.linspace(0, 1, 4 * 2 * 2 * 3).view(4, 2, 2, 3)
PROMPTS = ["a", "b", "a", "b"]


def means(images, examples):
    return images.mean((1, 2, 3))


def rank(images, examples):
    """Place of each picture in the batch by brightness: means nothing outside its group."""
    assert len(set(examples)) == 1
    return images.mean((1, 2, 3)).argsort().argsort()


@pytest.mark.parametrize("kind", [torch.Tensor.double, np.asarray, torch.Tensor.tolist])
def test_tensors_arrays_and_lists_are_scores(kind):
    reward = FunctionReward(lambda *batch: kind(means(*batch)), name="mean")
    batch = reward.score(IMAGES, PROMPTS)
    assert batch.valid.all() and batch.values.dtype == torch.float32
    assert batch.values.tolist() == pytest.approx(means(IMAGES, PROMPTS).tolist())


def test_the_function_gets_prompts_and_their_metadata():
    def length(images, examples):
        return [len(example.text) + example.metadata.get("bonus", 0.0) for example in examples]

    reward = FunctionReward(length, name="length")
    assert reward.score(IMAGES, PROMPTS).values.tolist() == [1.0] * 4
    examples = ["a", Example("b", {"bonus": 0.5})] * 2
    assert reward.score(IMAGES, examples).values.tolist() == [1.0, 1.5, 1.0, 1.5]


def test_a_groupwise_function_sees_the_pictures_of_one_prompt_at_a_time():
    reward = FunctionReward(rank, name="rank", groupwise=True)
    assert reward.score(IMAGES, PROMPTS).values.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert reward.score(IMAGES.flip(0), PROMPTS).values.tolist() == [1.0, 1.0, 0.0, 0.0]
    examples = ["a", Example("a", {"style": "oil"})] * 2  # one text, and still two groups
    assert reward.score(IMAGES, examples).values.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_no_score_is_never_zero():
    images = IMAGES.clone()
    images[3, 0, 0, 0] = torch.nan
    seen = []

    def some(images, examples):
        seen.append(len(images))
        return [1.0, None, math.inf]

    batch = FunctionReward(some, name="some").score(images, PROMPTS)
    assert batch.valid.tolist() == [True, False, False, False] and seen == [3]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0, 2.0], r"shape \(2,\) for 4 pictures; its function must give shape \(4,\)"),
        (0.5, r"shape \(\) for 4 pictures"),
        ([[1.0]] * 4, r"shape \(4, 1\) for 4 pictures"),
        ("good", "gave str; its function must give one number for each picture"),
        (None, "gave NoneType"),
        (["a", "b", "c", "d"], "gave list"),
    ],
)
def test_what_is_no_list_of_scores_is_refused(found, message):
    with pytest.raises(ValueError, match=f"reward odd .*{message}"):
        FunctionReward(lambda *_: found, name="odd").score(IMAGES, PROMPTS)


def test_what_the_function_raises_is_not_hidden():
    def down(*_):
        raise RewardFailed("server is down")

    with pytest.raises(RewardFailed, match="server is down"):
        FunctionReward(down, name="server").score(IMAGES, PROMPTS)


def test_the_fingerprint_names_the_function_or_what_the_user_says():
    assert FunctionReward(means, name="m").fingerprint["function"].endswith("test_function.means")
    assert FunctionReward(means, name="m", fingerprint={"version": 2}).fingerprint == {"version": 2}
