"""Several rewards: how they are combined, how they become advantages, what a run records."""

from __future__ import annotations

import logging
import math
import re
import statistics

import pytest
import torch
from fakes import PROMPTS, Brightness, Broken, ToyPolicy, toy_config
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_runs import without_seconds

from chunk_grpo_core.configfile.record import read_record
from chunk_grpo_core.measure.evaluate import evaluate
from chunk_grpo_core.method.advantage import AdvantageConfig, group_advantages, iteration_advantages
from chunk_grpo_core.method.reward import RewardBatch, RewardFailed, RewardPart
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.config import OptimizerConfig
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer

PER_REWARD = AdvantageConfig(combine="advantages", clamp=100.0)
SCORES = arrays("float32", (2, 2, 5), elements=st.integers(-50, 50).map(float))
MASKS = arrays("bool", (2, 2, 5))
SCALES = st.sampled_from(["group-std", "global-std"])


class Contrast:
    """Spread of the pixels, in thousandths: far larger numbers than brightness."""

    name = "contrast"
    fingerprint = {"unit": 1000.0}

    def score(self, images, examples):
        return RewardBatch.of(1000.0 * images.std((1, 2, 3)), range=images.amax((1, 2, 3)))


class Unreachable:
    """Fails for the prompts given, as a server that is down does."""

    name = "server"
    fingerprint = {"address": "here"}

    def __init__(self, *prompts):
        self.prompts = prompts

    def score(self, images, examples):
        if Example.of(examples[0]).text in self.prompts:
            raise RewardFailed("timed out")
        return RewardBatch.of(images[:, 0, 0, 0], depth=images[:, 1, 1, 1])


def combine(**weighted):
    """Combine the rewards of this file by name."""
    kinds = {"brightness": Brightness(), "contrast": Contrast(), "server": Unreachable(*PROMPTS)}
    return CombinedReward(
        [WeightedReward(reward=kinds[name], weight=weight) for name, weight in weighted.items()]
    )


def batches_of(*parts):
    """One batch for each group, from (weight, scores (P, G), valid (P, G)) of each part."""
    found = []
    for group in range(len(parts[0][1])):
        scored = tuple(
            RewardPart(name=f"r{k}", weight=weight, values=scores[group], valid=valid[group])
            for k, (weight, scores, valid) in enumerate(parts)
        )
        total = sum(part.weight * part.values for part in scored)
        found.append(RewardBatch(total, torch.ones(len(total), dtype=torch.bool), {}, scored))
    return found


def plain(*parts):
    """Batches in which everything is valid, from (weight, nested list) of each part."""
    tensors = [(weight, torch.tensor(scores)) for weight, scores in parts]
    return batches_of(*((w, s, torch.ones_like(s, dtype=torch.bool)) for w, s in tensors))


# Advantages


@given(SCORES, MASKS, st.sampled_from([(1.0, 1.0), (2.0, -0.5), (0.25, 3.0)]))
def test_normalised_one_by_one_is_gdpo(scores, masks, weights):
    scores, masks = torch.from_numpy(scores), torch.from_numpy(masks)
    batches = batches_of(*zip(weights, scores, masks, strict=True))
    found = iteration_advantages(batches, PER_REWARD)

    sums = {}
    for p in range(2):
        both = [i for i in range(5) if masks[0, p, i] and masks[1, p, i]]
        sums |= {(p, i): 0.0 for i in both}
        for weight, part in zip(weights, scores.tolist(), strict=True):
            known = [part[p][i] for i in both]
            if len(set(known)) > 1:
                mean, std = statistics.mean(known), statistics.stdev(known)
                for i in both:
                    sums[p, i] += weight * (part[p][i] - mean) / std
    spread = statistics.stdev(sums.values()) if len(sums) > 1 else 0.0
    expected = [
        sums.get((p, i), 0.0) / spread if spread > 1e-9 else 0.0 for p in range(2) for i in range(5)
    ]
    assert found.values.flatten().tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found.masked == 10 - len(sums)


@given(SCORES, MASKS, st.sampled_from([math.nan, math.inf, 1e30]), SCALES)
def test_scores_masked_in_any_part_change_nothing(scores, masks, poison, scale):
    scores, masks = torch.from_numpy(scores), torch.from_numpy(masks)
    config = AdvantageConfig(combine="advantages", scale=scale, keep=1)
    joint = masks.all(0)
    clean = batches_of((1.0, scores[0], joint), (3.0, scores[1], joint))
    clean = iteration_advantages(clean, config)
    bad = torch.where(masks, scores, torch.tensor(poison))
    found = batches_of((1.0, bad[0], masks[0]), (3.0, bad[1], masks[1]))
    found = iteration_advantages(found, config)
    assert torch.equal(found.values, clean.values)
    assert found.masked == clean.masked == int((~joint).sum())


def test_the_reward_with_the_large_numbers_decides_a_sum_but_not_combined_advantages():
    loud, quiet = [0.0, 0.0, 100.0, 100.0], [0.0, 1.0, 0.0, 1.0]
    batches = plain((1.0, [loud]), (1.0, [quiet]))
    by_sum = iteration_advantages(batches).values[0]
    by_parts = iteration_advantages(batches, PER_REWARD).values[0]
    quiet_gain, loud_gain = by_sum[1] - by_sum[0], by_sum[2] - by_sum[0]
    assert float(quiet_gain / loud_gain) == pytest.approx(0.01, rel=1e-4)
    assert float(by_parts[1]) == pytest.approx(float(by_parts[2]), abs=1e-6)
    assert by_parts[3] > by_parts[1] > by_parts[0]


def test_units_of_a_reward_do_not_matter_for_combined_advantages():
    first, second = [[0.0, 1.0, 4.0], [2.0, 0.0, 1.0]], [[5.0, 1.0, 2.0], [0.0, 0.0, 3.0]]
    louder = [[1000.0 * score + 7.0 for score in row] for row in first]
    expected = iteration_advantages(plain((0.5, first), (2.0, second)), PER_REWARD).values
    found = iteration_advantages(plain((0.5, louder), (2.0, second)), PER_REWARD).values
    torch.testing.assert_close(found, expected)


def test_different_combinations_of_rewards_keep_different_advantages():
    # GDPO, Fig. 2: the sums 0 and 2 look like the sums 0 and 1 after one normalisation.
    batches = plain((1.0, [[0.0, 1.0], [0.0, 1.0]]), (1.0, [[0.0, 1.0], [0.0, 0.0]]))
    by_sum = iteration_advantages(batches).values
    assert torch.equal(by_sum[0], by_sum[1])
    both, one = iteration_advantages(batches, PER_REWARD).values[:, 1].tolist()
    assert both == pytest.approx(2.0 * one)


def test_size_of_combined_advantages_does_not_grow_with_the_number_of_rewards():
    generator = torch.Generator().manual_seed(0)
    for count in (2, 3, 8):
        scores = torch.randn(count, 3, 12, generator=generator)
        valid = torch.ones(3, 12, dtype=torch.bool)
        batches = batches_of(*((1.0, part, valid) for part in scores))
        values = iteration_advantages(batches, PER_REWARD).values
        assert float(values.std()) == pytest.approx(1.0, abs=1e-5)
        assert values.mean(1).tolist() == pytest.approx([0.0] * 3, abs=1e-6)


def test_a_group_has_no_signal_when_no_part_has_or_when_parts_cancel():
    first = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.1, 0.2, 0.4]]
    second = [[3.0, 3.0, 3.0], [0.0, 1.0, 5.0], [-0.3, -0.6, -1.2]]  # up to rounding
    found = iteration_advantages(plain((1.0, first), (1.0, second)), PER_REWARD)
    assert found.zero_variance_groups == 2
    assert found.trained.any(1).tolist() == [False, True, False]
    assert torch.equal(found.values != 0, found.trained)


@pytest.mark.parametrize("mode", ["rewards", "advantages"])
def test_a_reward_with_weight_0_changes_no_advantage_and_masks_nothing(mode):
    config = AdvantageConfig(combine=mode)
    scores = torch.tensor([[0.0, 2.0, 5.0], [1.0, 0.0, 0.0]])
    valid = torch.ones_like(scores, dtype=torch.bool)
    silent = (0.0, torch.full_like(scores, math.nan), ~valid)
    expected = group_advantages(scores, valid).values
    batches = [
        RewardBatch(scores[p], valid[p], {}, batches_of((1.0, scores, valid), silent)[p].parts)
        for p in range(2)
    ]
    found = iteration_advantages(batches, config)
    assert torch.equal(found.values, expected) and found.masked == 0


@pytest.mark.parametrize("mode", ["rewards", "advantages"])
def test_one_reward_is_the_same_either_way(mode):
    scores = torch.tensor([[0.0, 2.0, 5.0], [1.0, 0.0, math.nan]])
    expected = group_advantages(scores, scores.isfinite())
    found = iteration_advantages(
        [RewardBatch.of(row) for row in scores], AdvantageConfig(combine=mode)
    )
    assert torch.equal(found.values, expected.values) and found.masked == 1


def test_a_batch_that_failed_as_a_whole_needs_no_parts():
    batches = plain((1.0, [[0.0, 1.0, 3.0]]), (1.0, [[1.0, 0.0, 5.0]]))
    alone = iteration_advantages(batches, PER_REWARD)
    found = iteration_advantages([RewardBatch.failed(3), *batches], PER_REWARD)
    assert torch.equal(found.values[1:], alone.values) and found.masked == 3


def test_groups_scored_by_different_rewards_are_refused():
    first = plain((1.0, [[0.0, 1.0]]), (1.0, [[0.0, 1.0]]))
    second = plain((2.0, [[0.0, 1.0]]), (1.0, [[0.0, 1.0]]))
    for other in (second[0], RewardBatch.of(torch.tensor([0.0, 1.0]))):
        with pytest.raises(ValueError, match="must have the same parts, got .*r0.*1.0"):
            iteration_advantages([*first, other], PER_REWARD)


# The combination


def test_a_combination_is_the_weighted_sum_of_its_parts():
    images = torch.rand(3, 4, 4, 3, generator=torch.Generator().manual_seed(1))
    batch = combine(brightness=2.0, contrast=-0.01).score(images, ["a"] * 3)
    bright, contrast = images.mean((1, 2, 3)), 1000.0 * images.std((1, 2, 3))
    torch.testing.assert_close(batch.values, 2.0 * bright - 0.01 * contrast)
    assert batch.valid.all()
    assert [(part.name, part.weight) for part in batch.parts] == [
        ("brightness", 2.0),
        ("contrast", -0.01),
    ]
    assert torch.equal(batch.parts[1].values, contrast)
    assert batch.extras.keys() == {"brightness/spread", "contrast/range"}
    assert batch.details.keys() == {*batch.extras, "brightness", "contrast"}


def test_a_part_that_fails_masks_its_scores_and_not_those_of_the_others(caplog):
    images = torch.rand(2, 4, 4, 3)
    with caplog.at_level(logging.WARNING):
        batch = combine(brightness=1.0, server=1.0).score(images, ["warm"] * 2)
    assert "reward server has no scores for a batch: timed out" in caplog.text
    assert not batch.valid.any() and batch.known.isnan().all()
    bright, server = batch.parts
    assert bright.valid.all() and not server.valid.any()
    assert torch.equal(batch.details["brightness"], images.mean((1, 2, 3)))


def test_details_show_nothing_that_is_not_valid():
    valid = torch.tensor([True, False])
    part = RewardPart(name="a", weight=0.0, values=torch.tensor([1.0, 2.0]), valid=valid)
    extra = torch.tensor([3.0, 4.0])
    details = RewardBatch(torch.zeros(2), ~valid, {"more": extra}, (part,)).details
    assert details["a"].isnan().tolist() == [False, True]
    assert details["more"].isnan().tolist() == [True, False]


def test_other_errors_of_a_part_are_not_hidden():
    class Bug(Unreachable):
        def score(self, images, examples):
            raise KeyError("typo")

    with pytest.raises(KeyError, match="typo"):
        CombinedReward([WeightedReward(reward=Bug())]).score(torch.rand(1, 4, 4, 3), ["a"])


def test_one_bad_score_masks_one_picture():
    parts = [WeightedReward(reward=Broken([1])), WeightedReward(reward=Brightness())]
    batch = CombinedReward(parts).score(torch.rand(3, 4, 4, 3), ["a"] * 3)
    assert batch.valid.tolist() == [True, False, True]
    assert batch.parts[1].valid.all()


def test_a_failing_reward_with_weight_0_masks_nothing():
    images = torch.rand(2, 4, 4, 3)
    batch = combine(brightness=1.0, server=0.0).score(images, ["warm"] * 2)
    assert batch.valid.all()
    assert torch.equal(batch.values, images.mean((1, 2, 3)))


def test_the_name_of_a_combination_tells_parts_and_weights():
    assert combine(brightness=1.0).name == "1.0*brightness"
    assert combine(brightness=1.0, contrast=-0.25).name == "1.0*brightness - 0.25*contrast"
    small = combine(brightness=1.0000001, contrast=1e-9).name
    assert small == "1.0000001*brightness + 1e-09*contrast"


def test_equal_names_get_numbers():
    class Second(Brightness):
        name = "brightness_2"

    rewards = [Brightness(), Second(), Brightness(), Brightness()]
    combined = CombinedReward([WeightedReward(reward=reward) for reward in rewards])
    names = [part.name for part in combined.score(torch.rand(1, 4, 4, 3), ["a"]).parts]
    assert names == ["brightness", "brightness_2", "brightness_3", "brightness_4"]


def test_a_combination_of_combinations_is_taken_apart():
    inner = combine(brightness=2.0, contrast=-1.0)
    outer = CombinedReward(
        [WeightedReward(reward=inner, weight=0.5), WeightedReward(reward=Brightness())]
    )
    assert outer.name == "1.0*brightness - 0.5*contrast + 1.0*brightness_2"
    images = torch.rand(2, 4, 4, 3)
    expected = 0.5 * inner.score(images, ["a"] * 2).values + images.mean((1, 2, 3))
    torch.testing.assert_close(outer.score(images, ["a"] * 2).values, expected)


def test_combinations_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="there are no rewards to combine"):
        CombinedReward([])
    with pytest.raises(ValueError, match="weights of brightness, contrast are all 0"):
        combine(brightness=0.0, contrast=-0.0)
    for weight in (math.nan, math.inf, 1e308, -1e7, 1e-30):
        message = f"weight of reward contrast is {re.escape(str(weight))}; .* finite"
        with pytest.raises(ValueError, match=message):
            combine(contrast=weight)


def test_a_part_with_too_few_scores_is_named():
    class Short(Contrast):
        def score(self, images, examples):
            return super().score(images[:1], examples[:1])

    combined = CombinedReward([WeightedReward(reward=Short())])
    with pytest.raises(ValueError, match="reward contrast gave 1 scores for 3 images"):
        combined.score(torch.rand(3, 4, 4, 3), ["a"] * 3)
    part = RewardPart(
        name="x", weight=1.0, values=torch.zeros(2), valid=torch.ones(2, dtype=torch.bool)
    )
    with pytest.raises(ValueError, match="part x has 2 scores, not 3"):
        RewardBatch(torch.zeros(3), torch.ones(3, dtype=torch.bool), {}, (part,))


# Runs


def rows_of(reward, **changes):
    """Metrics of a short toy run, without the clock."""
    rows = []
    Trainer(
        ToyPolicy(),
        reward,
        PROMPTS,
        toy_config(iterations=2, **changes),
        listener=lambda event: rows.append(event.metrics) if isinstance(event, IterationEnd) else 0,
    ).train()
    return without_seconds(rows)


@pytest.mark.parametrize("mode", ["rewards", "advantages"])
def test_a_run_on_two_rewards_records_both(mode):
    advantage = AdvantageConfig(combine=mode)
    rows = rows_of(combine(brightness=1.0, contrast=0.001), advantage=advantage)
    for row in rows:
        both = row["rewards"]
        assert both.keys() == {"brightness", "contrast"}
        assert 0.0 < both["brightness"]["mean"] < 1.0 < both["contrast"]["mean"]
        assert all(part["std"] > 0.0 and part["masked"] == 0 for part in both.values())
        expected = both["brightness"]["mean"] + 0.001 * both["contrast"]["mean"]
        assert row["reward_mean"] == pytest.approx(expected, rel=1e-5)
        assert row["extras"].keys() == {"brightness/spread", "contrast/range"}
        assert row["ratio_error_first_update"] == 0.0 and row["grad_norm"] > 0.0


def test_the_two_modes_train_differently():
    reward = combine(brightness=1.0, contrast=1.0)
    first, second = (
        rows_of(reward, advantage=AdvantageConfig(combine=mode))
        for mode in ("rewards", "advantages")
    )
    assert first[0]["reward_mean"] == second[0]["reward_mean"]
    assert first[1]["reward_mean"] != second[1]["reward_mean"]


def test_one_reward_is_recorded_under_its_name():
    (row, _) = rows_of(Broken([1, 4]))
    assert row["rewards"] == {
        "broken": {"mean": row["reward_mean"], "std": row["reward_std"], "masked": 4}
    }


def test_a_reward_that_is_only_watched_changes_no_number_of_the_run():
    alone = rows_of(Brightness())
    watched = rows_of(combine(brightness=1.0, contrast=0.0, server=0.0))
    assert watched[1]["rewards"]["server"] == {"mean": None, "std": 0.0, "masked": 16}
    for key in ("reward_mean", "advantage_std", "masked_scores", "grad_norm", "trained_passes"):
        assert [row[key] for row in watched] == [row[key] for row in alone]


def test_a_group_whose_part_fails_is_masked_and_the_run_goes_on():
    reward = CombinedReward(
        [WeightedReward(reward=Brightness()), WeightedReward(reward=Unreachable("warm", "cold"))]
    )
    rows = rows_of(reward, advantage=PER_REWARD, prompts_per_iteration=4)
    masked = [row["rewards"]["server"]["masked"] for row in rows]
    assert max(masked) > 0 and masked == [row["masked_scores"] for row in rows]
    assert all(row["rewards"]["brightness"]["masked"] == 0 for row in rows)
    assert all(row["grad_norm"] > 0.0 for row in rows)


def test_trimmed_samples_cost_no_passes():
    # One update, so that the ratio is 1 and nothing is clipped.
    settings = {"optimizer": OptimizerConfig(updates_per_rollout=1), "chunk_fraction": 1.0}
    (whole, _) = rows_of(Brightness(), **settings)
    (row, _) = rows_of(Brightness(), advantage=AdvantageConfig(keep=2), **settings)
    assert whole["trained_passes"] == 2 * 8 * 5  # groups, samples, steps
    assert row["trained_passes"] == 2 * 4 * 5
    assert row["advantage_std"] > whole["advantage_std"]  # without the zeros: extremes only


def test_measurements_hold_every_reward_and_a_gap_where_one_failed():
    parts = [Brightness(), Unreachable(PROMPTS[1])]
    reward = CombinedReward([WeightedReward(reward=part) for part in parts])
    policy, grid = ToyPolicy(), shifted_grid(4)
    found = evaluate(policy, reward, PROMPTS[:3], grid, seeds=2)
    alone = evaluate(policy, Brightness(), PROMPTS[:3], grid, seeds=2)
    assert torch.equal(found.extras["brightness"], alone.rewards)
    gaps = [[False] * 2, [True] * 2, [False] * 2]
    for name in ("server", "server/depth", "brightness/spread"):
        assert found.extras[name].isnan().tolist() == gaps
    assert found.rewards.isnan().tolist() == gaps


def test_the_record_of_a_run_names_rewards_and_weights(tmp_path):
    folder, config = RunFolder(tmp_path), toy_config(iterations=1)
    reward = combine(brightness=1.0, contrast=0.5)
    outcome = run_experiment(ToyPolicy(), reward, PROMPTS, ["a", "b"], config, folder)
    assert read_record(tmp_path).reward == "1.0*brightness + 0.5*contrast"
    assert read_record(tmp_path).reward_fingerprint["contrast/unit"] == 1000.0
    assert outcome.after.to_json()["extras"].keys() >= {"brightness", "contrast"}
    other = combine(brightness=1.0, contrast=0.25)
    with pytest.raises(ValueError, match=r"0\.25\*contrast.* trained with .*0\.5\*contrast"):
        run_experiment(ToyPolicy(), other, PROMPTS, ["a", "b"], config, folder, resume=True)
