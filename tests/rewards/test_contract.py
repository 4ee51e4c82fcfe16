"""What all rewards take and tell: metadata, fingerprints, lengths."""

from __future__ import annotations

import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config

from chunk_grpo_core.configfile.record import read_record
from chunk_grpo_core.method.reward import RewardBatch, checked_inputs
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards import REWARDS, load_reward
from chunk_grpo_core.rewards.catalog import CATALOG
from chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder

IMAGES = torch.rand(3, 4, 4, 3)


class Counting(Brightness):
    """Scores a number that the metadata holds."""

    name = "counting"
    fingerprint = {"unit": 2}

    def score(self, images, examples):
        images, examples = checked_inputs(images, examples)
        counts = [float(example.metadata.get("count", -1)) for example in examples]
        return RewardBatch.of(torch.tensor(counts))


def test_every_picture_is_scored_with_the_metadata_of_its_own_example():
    examples = [Example("one text", {"count": 2}), "one text", Example("one text", {"count": 1})]
    assert Counting().score(IMAGES, examples).values.tolist() == [2.0, -1.0, 1.0]


def test_a_combination_hands_metadata_to_every_part():
    parts = [WeightedReward(reward=Counting()), WeightedReward(reward=Brightness())]
    batch = CombinedReward(parts).score(IMAGES, [Example("a", {"count": 7})] * 3)
    assert batch.parts[0].values.tolist() == [7.0] * 3


def test_fingerprints_tell_parts_and_weights_apart():
    def combined(weight):
        return CombinedReward([WeightedReward(reward=Counting(), weight=weight)])

    assert combined(0.5).fingerprint == {"counting/weight": 0.5, "counting/unit": 2}
    assert combined(0.5).fingerprint != combined(1.0).fingerprint


def test_a_run_is_not_resumed_with_a_reward_that_scores_otherwise(tmp_path):
    folder, config = RunFolder(tmp_path), toy_config(iterations=1)
    run_experiment(ToyPolicy(), Brightness(), PROMPTS, ["a", "b"], config, folder)
    assert read_record(tmp_path).reward_fingerprint == {}

    class Changed(Brightness):
        fingerprint = {"weights": "of another file"}

    with pytest.raises(ValueError, match="reward_fingerprint"):
        run_experiment(ToyPolicy(), Changed(), PROMPTS, ["a", "b"], config, folder, resume=True)


@pytest.mark.parametrize(
    ("images", "examples", "message"),
    [
        (torch.rand(3, 4, 4), ["a"] * 3, r"shape \(B, H, W, 3\)"),
        (torch.rand(3, 4, 4, 4), ["a"] * 3, r"shape \(B, H, W, 3\)"),
        (torch.zeros(3, 4, 4, 3, dtype=torch.uint8), ["a"] * 3, "floating point"),
        (IMAGES, ["a"] * 2, "3 images need 3 prompts, got 2"),
        (IMAGES, "abc", "3 images need 3 prompts, got 1"),
        (IMAGES, Example("abc"), "3 images need 3 prompts, got 1"),
        (IMAGES, ["a", "b", 3], "a prompt is 3; it must be a string"),
        (IMAGES, ["a", "b", {"prompt": "c"}], "it must be a string"),
    ],
)
def test_what_does_not_fit_together_is_refused(images, examples, message):
    with pytest.raises(ValueError, match=message):
        checked_inputs(images, examples)


def test_unknown_rewards_and_settings_are_named():
    with pytest.raises(ValueError, match="'hps'; it must be one of tiny_world"):
        load_reward("hps")
    with pytest.raises(ValueError, match="color"):
        load_reward("target_colour", color="#ffffff")
    with pytest.raises(ValueError, match="folders is 'models'; it must be a list of texts"):
        load_reward("pickscore", folders="models")
    with pytest.raises(ValueError, match="dtype is 'half'; it must be one of float32"):
        load_reward("pickscore", dtype="half")
    with pytest.raises(ValueError, match="batch_size is 0"):
        load_reward("pickscore", batch_size=0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("clipscore", {"model": "clip-b"}, "model is 'clip-b'; it must be one of clip-l, clip-h"),
        ("clipscore", {"convention": "x100"}, "convention is 'x100'; .* cosine, percent, paper"),
        ("hpsv2", {"version": "3"}, "version is '3'; it must be one of 2.1, 2.0"),
        ("hpsv2", {"scale": 0}, "scale is 0; it must be above 0"),
        ("imagereward", {"version": "3"}, "the reward imagereward has no setting version"),
    ],
)
def test_settings_are_checked_before_any_file_is_looked_for(name, settings, message):
    with pytest.raises(ValueError, match=message):
        load_reward(name, **settings)


@pytest.mark.parametrize("name", sorted(name for name in REWARDS if CATALOG[name].files))
def test_missing_weights_are_asked_for_by_name_and_nothing_is_downloaded(
    name, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    file = CATALOG[name].files[0]
    with pytest.raises(FileNotFoundError) as error:
        load_reward(name, folders=[tmp_path])
    for fact in (file.name, file.size, file.licence, file.page, str(tmp_path / file.folder)):
        assert fact in str(error.value)
