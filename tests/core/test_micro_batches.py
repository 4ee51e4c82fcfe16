"""Micro-batches of an update: every sample-step once, chunks whole, one pass where that is enough.

Legend: G samples in a group, K chunks, N - 1 trainable steps.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from fakes import PROMPTS, Brightness, MixingPolicy, ToyPolicy, toy_config

from chunk_grpo_core.method.chunks import ChunkPlan, draw_chunks
from chunk_grpo_core.method.micro_batches import step_batches, whole_units
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.replay import replay_step, replay_steps
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.tiny.policy import tiny_policy
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.train.config import OptimizerConfig, TrainConfig
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer

GROUP, PLAN = 12, ChunkPlan((2, 3, 4, 7))
SIZES = [None, 1, 3, 4, 7]


def counted(batches):
    """How often each (step, sample) counts."""
    return Counter(
        pair
        for batch in batches
        for pair in list(zip(batch.steps.tolist(), batch.samples.tolist(), strict=True))[
            : batch.count
        ]
    )


@pytest.mark.parametrize("mixes_times", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_every_sample_step_is_in_exactly_one_batch(size, mixes_times):
    drawn = draw_chunks(PLAN, 0.5, GROUP, 3)
    whole, rest = whole_units(drawn, PLAN.bounds(), size, mixes_times=mixes_times)
    steps = list(step_batches(PLAN.spread(rest), size, mixes_times=mixes_times))
    needed = PLAN.spread(drawn)
    expected = Counter((s, g) for g, s in needed.nonzero().tolist())
    assert counted([*whole, *steps]) == expected
    for batch in [*whole, *steps]:
        assert batch.count <= len(batch.steps) <= max(size or GROUP, 4)
        assert batch.steps.tolist() == sorted(batch.steps.tolist())
        assert mixes_times or len(set(batch.steps.tolist())) == 1


@pytest.mark.parametrize("size", SIZES)
def test_chunks_that_fit_stay_whole_and_longer_ones_are_left(size):
    drawn = draw_chunks(PLAN, 0.5, GROUP, 3)
    whole, rest = whole_units(drawn, PLAN.bounds(), size, mixes_times=True)
    fits = torch.tensor(PLAN.sizes) <= (size or GROUP)
    assert torch.equal(rest, drawn & ~fits)
    for batch in whole:
        own = counted([batch])
        for step, sample in own:
            first, last = PLAN.bounds()[PLAN.chunk_of(step)]
            assert all((other, sample) in own for other in range(first, last))


def test_no_batch_is_made_of_nothing():
    nothing = torch.zeros(GROUP, PLAN.count, dtype=torch.bool)
    assert whole_units(nothing, PLAN.bounds(), 4, mixes_times=True)[0] == []
    assert list(step_batches(PLAN.spread(nothing), 4, mixes_times=True)) == []


def test_several_steps_in_one_call_are_what_single_calls_say():
    policy, grid = tiny_policy(), shifted_grid(6, 3.0)
    group = rollout(
        policy._velocity, caption(TRAIN[0]), grid, SdeConfig(), Noise(True, 0, 6), (16, 8, 8)
    )
    steps, samples = torch.tensor([0, 0, 2, 2, 2, 4]), torch.tensor([1, 4, 0, 1, 5, 3])
    with torch.no_grad():
        found = replay_steps(policy._velocity, group, steps, samples)
        assert [step for step, _, _ in found] == [0, 2, 4]
        for step, own, new in found:
            alone = replay_step(policy._velocity, group, step, own.repeat(4)).log_p[: len(own)]
            assert torch.equal(new.log_p, alone)
            assert torch.equal(new.log_p, group.log_p[step, own])


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("size", [None, 5, 7])
def test_ratios_of_the_first_update_are_exactly_one_in_mixed_batches(size, shared):
    config = TrainConfig(
        grid=shifted_grid(8, 3.0),
        plan=ChunkPlan((1, 2, 4)),
        iterations=1,
        prompts_per_iteration=2,
        group_size=12,
        update_batch_size=size,
        share_initial_noise=shared,
        optimizer=OptimizerConfig(updates_per_rollout=1),
    )
    rows = []
    Trainer(
        tiny_policy(),
        Brightness(),
        [caption(scene) for scene in TRAIN[:2]],
        config,
        listener=lambda event: rows.append(event.metrics) if isinstance(event, IterationEnd) else 0,
    ).train()
    assert rows[0]["ratio_error_first_update"] == 0.0
    assert rows[0]["trained_passes"] > 0


@pytest.mark.parametrize("solver", ["euler", "dpm2"])
def test_a_common_start_gives_the_bits_of_samples_computed_one_by_one(solver):
    policy, grid = ToyPolicy(), shifted_grid(7, 2.0)
    stochastic = torch.zeros(6, 6, dtype=torch.bool)
    stochastic[:, 3:] = True
    options = {"stochastic": stochastic, "solver": solver}

    once = rollout(
        policy.velocity, PROMPTS[0], grid, SdeConfig(), Noise(True, 1, 6), (4, 4, 4), **options
    )
    assert policy.calls == [4] * 4 + [6] * 3
    for step in range(3):
        assert torch.equal(once.states[step], once.states[step][:1].expand(6, -1, -1, -1))
    for step in range(3, 6):
        assert torch.equal(replay_step(policy.velocity, once, step).log_p, once.log_p[step])
    single = rollout(
        ToyPolicy().velocity,
        PROMPTS[0],
        grid,
        SdeConfig(),
        Noise(True, 1, 1),  # nobody to share with
        (4, 4, 4),
        **{**options, "stochastic": stochastic[:1]},
    )
    assert torch.equal(once.states[:, :1], single.states)


def test_an_update_can_have_smaller_batches_than_a_rollout():
    policy = MixingPolicy()
    Trainer(
        policy,
        Brightness(),
        PROMPTS,
        toy_config(iterations=1, self_test=False, update_batch_size=3),
    ).train()
    sizes = Counter(policy.calls)
    assert set(sizes) <= {1, 2, 3, 4, 8} and sizes[8] == 10  # 4: common starts
    assert sizes[3] > 0


@pytest.mark.parametrize("size", [0, -1])
def test_update_batch_size_must_be_positive(size):
    with pytest.raises(
        ValueError, match=f"update_batch_size is {size}; it must be a whole number from 1"
    ):
        toy_config(update_batch_size=size)
