"""Two rewards and one number between them."""

from __future__ import annotations

import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config

from chunk_grpo_core.configfile.reading import read_config_file
from chunk_grpo_core.method.advantage import AdvantageConfig, iteration_advantages
from chunk_grpo_core.method.reward import RewardBatch, is_scale_free
from chunk_grpo_core.rewards.balance import BALANCE, BalancedReward
from chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward
from chunk_grpo_core.runs.load import load_rewards
from chunk_grpo_core.runs.view import _drawn
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer
from chunk_grpo_core.watch.history import reward_means
from chunk_grpo_core.watch.plots import plot_training


class Contrast(Brightness):
    """Spread of the pixels, in ``unit``."""

    name = "contrast"
    unit = 1000.0

    def score(self, images, examples):
        return RewardBatch.of(self.unit * images.std((1, 2, 3)))


def weighted(reward, weight=1.0):
    return WeightedReward(reward=reward, weight=weight)


def pictures(seed=0):
    return torch.rand(8, 4, 4, 3, generator=torch.Generator().manual_seed(seed))


def advantages(reward, **settings):
    batches = [reward.score(pictures(seed), ["a"] * 8) for seed in range(3)]
    return iteration_advantages(batches, AdvantageConfig(**settings), is_scale_free(reward)).values


def in_unit(unit):
    return type("InUnit", (Contrast,), {"unit": unit})()


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_a_balance_does_not_depend_on_the_units_of_its_rewards(balance):
    small, large = (
        advantages(BalancedReward(Brightness(), in_unit(unit), balance)) for unit in (1.0, 1e4)
    )
    torch.testing.assert_close(small, large, atol=1e-4, rtol=1e-4)


def test_the_ends_of_a_balance_are_its_rewards_alone():
    torch.testing.assert_close(
        advantages(BalancedReward(Brightness(), Contrast(), 0.0)), advantages(Brightness())
    )
    torch.testing.assert_close(
        advantages(BalancedReward(Brightness(), Contrast(), 1.0)), advantages(Contrast())
    )


def test_a_balance_is_the_combination_of_advantages_with_these_weights():
    plain = CombinedReward([weighted(Brightness(), 0.7), weighted(Contrast(), 0.3)])
    expected = advantages(plain, combine="advantages")
    torch.testing.assert_close(advantages(BalancedReward(Brightness(), Contrast(), 0.3)), expected)
    assert not expected.allclose(advantages(plain))


def test_both_numbers_are_recorded_at_every_balance():
    rows = []

    def listen(event):
        if isinstance(event, IterationEnd):
            rows.append(event.metrics)

    config = toy_config(iterations=2, self_test=False)
    reward = BalancedReward(Brightness(), Contrast(), 0.0)
    Trainer(ToyPolicy(), reward, PROMPTS, config, listener=listen).train()
    assert [set(row["rewards"]) for row in rows] == [{"brightness", "contrast"}] * 2
    alone = []
    Trainer(
        ToyPolicy(), Brightness(), PROMPTS, config,
        listener=lambda e: alone.append(e.metrics) if isinstance(e, IterationEnd) else None,
    ).train()  # fmt: skip
    assert [row["grad_norm"] for row in rows] == [row["grad_norm"] for row in alone]


def test_a_side_that_is_a_combination_counts_as_one_reward():
    side = CombinedReward([weighted(Brightness(), 2.0), weighted(in_unit(1.0), 1.0)])
    reward = BalancedReward(side, Contrast(), 0.5)
    batch = reward.score(pictures(), ["a"] * 8)
    assert [part.weight for part in batch.parts] == [0.5, 0.5]
    assert batch.parts[0].values.allclose(side.score(pictures(), ["a"] * 8).values)
    assert {"brightness and contrast/brightness", "brightness and contrast/contrast"} <= set(
        batch.extras
    )


@pytest.mark.parametrize("balance", [-0.1, 1.1, float("nan"), True])
def test_a_balance_out_of_range_is_refused(balance):
    with pytest.raises(ValueError, match="balance is .* from 0 .* to 1"):
        BalancedReward(Brightness(), Contrast(), balance)


def test_a_balance_is_the_last_thing_that_is_done():
    inner = BalancedReward(Brightness(), Contrast())
    for outer in (
        lambda: CombinedReward([weighted(inner)]),
        lambda: BalancedReward(inner, Contrast()),
    ):
        with pytest.raises(ValueError, match="combine first and balance last"):
            outer()


def test_a_balance_without_a_scale_is_refused_before_training():
    config = toy_config(advantage=AdvantageConfig(scale="none"))
    with pytest.raises(ValueError, match=r"advantage.scale is none.*balance"):
        Trainer(ToyPolicy(), BalancedReward(Brightness(), Contrast()), PROMPTS, config)


FILE = """
preset = "quick"

[model]
type = "tiny"

[[reward]]
name = "brightness"
weight = 2.0

[[reward]]
name = "tiny_world"
{balance}

{more}
"""


def written(tmp_path, balance, more=""):
    path = tmp_path / "mine.toml"
    path.write_text(FILE.format(balance=balance, more=more))
    return path


def test_a_configuration_file_gives_one_reward_its_balance(tmp_path):
    config = read_config_file(written(tmp_path, "balance = 0.25"))
    reward = load_rewards(config)
    assert isinstance(reward, BalancedReward) and reward.balance == 0.25
    assert reward.name == "brightness and tiny_world (balance 0.25)"
    assert config.tables()["reward"][1] == {"name": "tiny_world", "weight": 1.0, "balance": 0.25}
    assert 0 < BALANCE < 1


@pytest.mark.parametrize(
    ("balance", "more", "says"),
    [
        ("balance = 2", "", r"reward.balance is 2; it must be .* 0 to 1"),
        ('balance = "x"', "", "reward.balance is 'x'"),
        ("balance = 0.5\nweight = 2.0", "", "has no weight"),
        ("balance = 0.5", '[[reward]]\nname = "saturation"\nbalance = 0.5', "one of them"),
    ],
)
def test_a_wrong_balance_in_a_file_is_named(tmp_path, balance, more, says):
    with pytest.raises(ValueError, match=says):
        read_config_file(written(tmp_path, balance, more))


def test_a_balance_of_the_only_reward_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'preset = "quick"\n[model]\ntype = "tiny"\n[reward]\nname = "brightness"\nbalance = 0.5\n'
    )
    with pytest.raises(ValueError, match="add a second"):
        read_config_file(path)


def test_the_monitor_and_the_plot_show_each_of_several_rewards(tmp_path):
    rows = [
        {
            "iteration": index,
            "reward_mean": 0.5,
            "rewards": {
                "taste": {"mean": 0.1 * index, "std": 0.2},
                "prompt": {"mean": None if index == 1 else -index, "std": 1.0},
            },
        }
        for index in range(4)
    ]
    assert reward_means(rows[1]) == {"taste": 0.1, "prompt": None}
    assert _drawn(rows[1])["rewards"] == {"taste": 0.1, "prompt": None}
    one = [{**row, "rewards": {"taste": row["rewards"]["taste"]}} for row in rows]
    assert "rewards" not in _drawn(one[0])
    assert plot_training(rows).shape[0] > plot_training(one).shape[0]
    for damaged in (None, 3, {"taste": 3}, {"taste": {"mean": "x"}}):
        plot_training([{**rows[0], "rewards": damaged}, *rows[1:]])
        plot_training([*rows[:3], {**rows[3], "rewards": damaged}])
