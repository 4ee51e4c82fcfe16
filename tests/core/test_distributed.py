"""Processes that share a training get what one alone gets; here they are threads.

Real processes are in ``test_processes.py``. Legend: P groups, G samples in a group.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from fakes import PROMPTS, Brightness, FailsAfter, ToyPolicy, toy_config
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import Unreachable, same_training, together, train

from chunk_grpo_core.measure.evaluate import Evaluation
from chunk_grpo_core.method.advantage import AdvantageConfig
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.reward import NothingScored, RewardBatch, RewardPart
from chunk_grpo_core.processes.collective import Processes, divided
from chunk_grpo_core.processes.equal_calls import LockStep
from chunk_grpo_core.processes.launch import asks_for_sharding, join_processes
from chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.checkpoint import Checkpoints
from chunk_grpo_core.train.config import OptimizerConfig
from chunk_grpo_core.train.trainer import Trainer


class Flat:
    """Every picture is as good as any other."""

    name, fingerprint = "flat", {}

    def score(self, images, examples):
        return RewardBatch.of(torch.ones(len(images)))


class Picky(Brightness):
    """Has no score for bright pictures."""

    name = "picky"

    def score(self, images, examples):
        found = super().score(images, examples).values
        return RewardBatch.of(torch.where(found > 0.5, torch.nan, found))


def mixed():
    parts = [(Brightness(), 1.0), (Picky(), 0.5)]
    return CombinedReward([WeightedReward(reward=reward, weight=w) for reward, w in parts])


PLAIN = {"iterations": 2, "prompts_per_iteration": 4, "group_size": 4, "self_test": False}
RICH = {
    **PLAIN,
    "self_test": True,
    "optimizer": OptimizerConfig(learning_rate=1e-2, epochs=2, ema_decay=0.5, max_grad_norm=1e-4),
    "objective": ObjectiveConfig(clip_low=1e-5, clip_high=1e-5, kl_ref=0.1),
    "advantage": AdvantageConfig(scale="global-std", keep=1),
    "noise": "drawn",
}
CASES = {
    "plain": (PLAIN, None, 2, False),
    "every setting that looks across groups": (RICH, None, 2, False),
    "processes without work in an update": (PLAIN, Unreachable, 4, False),
    "several rewards, masked": (
        {**PLAIN, "advantage": AdvantageConfig(combine="advantages")}, mixed, 2, False,
    ),
    "nobody has a gradient": (PLAIN, Flat, 2, False),
    "groups are split": ({**RICH, "prompts_per_iteration": 3}, mixed, 2, True),
    "a group belongs to three": ({**PLAIN, "prompts_per_iteration": 2}, Unreachable, 4, True),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_processes_trains_as_one_does(case):
    changes, reward, count, split = CASES[case]
    config, reward = toy_config(**changes), reward or Brightness
    alone = train(config, reward())
    found = together(
        count, lambda processes: train(config, reward(), processes), split_groups=split
    )
    same_training(alone, found[0])
    for rows, adapter, heard in found[1:]:
        assert not rows and not heard
        assert all(torch.equal(adapter[name], found[0][1][name]) for name in adapter)
    assert found[0][2] and set(found[0][2]) <= set(alone[2])
    assert (sum(row["masked_scores"] for row in alone[0]) > 0) == (reward in (mixed, Unreachable))


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_shares_are_equal_and_cover_every_sample_once(groups, group_size, count, split):
    size = groups * group_size if split else groups
    if size % count:
        with pytest.raises(ValueError, match=f"{count} processes cannot share"):
            divided(groups, group_size, 0, count, split_groups=split)
        return
    owned = []
    for rank in range(count):
        shares = divided(groups, group_size, rank, count, split_groups=split)
        mine = [(s.group, i) for s in shares for i in range(*s.samples.indices(group_size))]
        assert len(mine) == groups * group_size // count
        assert len({share.group for share in shares}) == len(shares)
        owned += mine
    assert owned == [(group, i) for group in range(groups) for i in range(group_size)]


def test_prompts_that_cannot_be_shared_name_what_can():
    with pytest.raises(ValueError, match=r"6 or 9 \(a multiple of 3\), start 1, 2, 4 or 8 proc"):
        divided(8, 2, 0, 3)
    with pytest.raises(ValueError, match=r"is 2, .* set it to 4 \(.*, or split groups"):
        divided(2, 6, 0, 4)
    with pytest.raises(ValueError, match=r"2 x 3 = 6 samples .* start 1, 2, 3 or 6 processes"):
        divided(2, 3, 0, 4, split_groups=True)


def experiment(processes, folder, reward=None):
    config = toy_config(**PLAIN, checkpoint_every=1)
    policy = ToyPolicy()
    outcome = run_experiment(
        policy, reward or Brightness(), PROMPTS[:4], PROMPTS[2:], config, RunFolder(folder),
        resume=folder.exists() and processes.is_writer, evaluation_seeds=1, processes=processes,
    )  # fmt: skip
    return outcome


def test_one_process_writes_and_every_one_knows_the_outcome(tmp_path):
    alone = experiment(Processes(), tmp_path / "alone")
    # Three processes for two prompts to measure on, then more of them than prompts to train on.
    own = [tmp_path / f"of {rank}" for rank in range(4)]
    found = together(4, lambda processes: experiment(processes, own[processes.rank]))
    assert [path.exists() for path in own] == [True, False, False, False]
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        for folder in (own[0], tmp_path / "alone")
    ]
    assert names[0] == names[1] != []
    for outcome in found:
        assert outcome.before.prompts == alone.before.prompts
        torch.testing.assert_close(outcome.before.rewards, alone.before.rewards, rtol=0, atol=0)
        torch.testing.assert_close(outcome.after.rewards, alone.after.rewards, rtol=0, atol=1e-5)
        torch.testing.assert_close(outcome.after.images, alone.after.images, rtol=0, atol=1e-5)
        assert len(outcome.rows) == len(alone.rows)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1), (2, 4)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, first, then):
    def run(folder, iterations, count):
        def work(processes):
            policy = ToyPolicy()
            config = toy_config(**{**RICH, "iterations": iterations})
            trainer = Trainer(
                policy, Brightness(), PROMPTS, config, processes=processes,
                checkpoints=Checkpoints(folder if processes.is_writer else folder / "nothing"),
            )  # fmt: skip
            done = trainer.resume()
            trainer.train()
            return done, policy.adapter.state_dict()

        return together(count, work)

    ((_, whole),) = run(tmp_path / "whole", 2, 1)
    run(tmp_path / "stopped", 1, first)
    for done, adapter in run(tmp_path / "stopped", 2, then):
        assert done == 1
        for name, factor in adapter.items():
            torch.testing.assert_close(factor, whole[name], rtol=0, atol=1e-5)


def test_processes_with_different_rewards_do_not_train(tmp_path):
    def work(processes):
        reward = Brightness()
        reward.fingerprint = {"sha256": "ab"[processes.rank]}
        with pytest.raises(ValueError, match="process 1 has another reward_fingerprint"):
            experiment(processes, tmp_path / "new", reward)

    together(2, work)
    assert not (tmp_path / "new").exists()


def test_all_processes_end_alike_when_no_process_has_a_score(tmp_path):
    """A process whose own groups all failed goes on while another one has a score."""

    def work(processes):
        reward = FailsAfter(3 if processes.rank else 2, f"no answer to {processes.rank}")
        config = toy_config(**{**PLAIN, "iterations": 4})
        checkpoints = Checkpoints(tmp_path) if processes.is_writer else None
        trainer = Trainer(
            ToyPolicy(), reward, PROMPTS, config, processes=processes, checkpoints=checkpoints
        )
        message = "iteration 3 has a score .reward brightness: no answer to 1"
        with pytest.raises(NothingScored, match=message):
            trainer.train()
        return trainer.iteration

    assert together(2, work) == [2, 2]
    assert Checkpoints(tmp_path).load().iteration == 2


def test_a_measurement_needs_a_score_in_any_process_only(tmp_path):
    def work(calls):
        def one(processes):
            reward = FailsAfter(calls[processes.rank])
            with pytest.raises(NothingScored) as caught:
                experiment(processes, tmp_path / str(calls), reward)
            return str(caught.value)

        return one

    texts = together(2, work((0, 0)))
    assert texts[0] == texts[1] and "no picture of the evaluation" in texts[0]
    texts = together(2, work((0, 2)))  # two prompts have scores before, none in training
    assert texts[0] == texts[1] and "no picture of iteration 1 has a score" in texts[0]


def test_parts_of_a_group_make_its_batch():
    def batch(values, scores):
        valid = torch.isfinite(torch.tensor(scores))
        part = RewardPart(name="a", weight=1.0, values=torch.tensor(scores), valid=valid)
        return RewardBatch(torch.tensor(values), valid, {"x": torch.tensor(values)}, (part,))

    parts = [batch([1.0, 2.0], [1.0, math.nan]), RewardBatch.failed(1), batch([3.0], [3.0])]
    whole = RewardBatch.joined(parts)
    assert whole.valid.tolist() == [True, False, False, True]
    assert whole.known.nan_to_num(-1).tolist() == [1.0, -1.0, -1.0, 3.0]
    assert whole.details["a"].nan_to_num(-1).tolist() == [1.0, -1.0, -1.0, 3.0]
    assert whole.extras["x"].nan_to_num(-1).tolist() == [1.0, 2.0, -1.0, 3.0]


def test_evaluations_join_in_order_and_miss_extras_visibly():
    def of(prompt, value, **extras):
        return Evaluation((prompt,), torch.full((1, 2), value), extras, torch.zeros(1, 2, 2, 3))

    whole = Evaluation.joined([of("a", 1.0, x=torch.ones(1, 2)), of("b", math.nan)])
    assert whole.prompts == ("a", "b") and whole.images.shape == (2, 2, 2, 3)
    assert whole.extras["x"].nan_to_num(-1).tolist() == [[1.0, 1.0], [-1.0, -1.0]]


@pytest.mark.parametrize("seed", range(5))
def test_in_lock_step_every_process_makes_the_same_calls(seed):
    def work(processes):
        draw, calls = random.Random(f"{seed}/{processes.rank}"), []
        lock_step = LockStep(lambda number: max(processes.gather(number)))
        lock_step.start(lambda with_gradient: calls.append(("idle", with_gradient)))
        for _ in range(3):
            for _ in range(draw.randrange(6)):
                with_gradient = draw.random() < 0.5
                with torch.set_grad_enabled(with_gradient):
                    lock_step.before_call()
                calls.append(("own", with_gradient))
            lock_step.settle()
        return calls

    found = together(3, work)
    kinds = [[with_gradient for _, with_gradient in calls] for calls in found]
    assert kinds[0] == kinds[1] == kinds[2]
    assert all("own" in {calls[i][0] for calls in found} for i in range(len(found[0])))


def test_a_model_that_nobody_shards_is_called_without_agreement():
    LockStep(lambda number: pytest.fail("asked")).settle()


def test_accelerate_may_ask_only_for_what_is_done_here():
    assert not asks_for_sharding({"ACCELERATE_MIXED_PRECISION": "no"})
    assert asks_for_sharding({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})
    for environment, message in (
        ({"ACCELERATE_USE_FSDP": "true"}, "set fsdp_version to 2"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "model.weights decides"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "set distributed_type"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params to false"),
    ):
        with pytest.raises(ValueError, match=message):
            asks_for_sharding(environment)


def test_a_process_that_nobody_launched_is_alone():
    with join_processes() as processes:
        assert (processes.count, processes.is_writer) == (1, True)
    with pytest.raises(ValueError, match="must be above 0"), join_processes(timeout=0):
        pass


def test_one_process_has_no_groups_to_split():
    with (
        pytest.raises(ValueError, match="--split-groups has no effect with one process"),
        join_processes(split_groups=True),
    ):
        pass
