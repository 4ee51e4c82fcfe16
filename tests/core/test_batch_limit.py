"""Memory that runs out costs time, never numbers: the batch is halved and the work done again."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config

from chunk_grpo_core.measure.evaluate import evaluate
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.train.batch_limit import BatchLimit, NothingFits
from chunk_grpo_core.train.config import OptimizerConfig
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer


class SmallMemory(ToyPolicy):
    """A toy policy that runs out of memory, as torch says it, where a batch is too large."""

    error = torch.OutOfMemoryError

    def __init__(self, *, forward=10**6, backward=10**6, decode=10**6):
        super().__init__()
        self.limits = {"forward": forward, "backward": backward, "decode": decode}
        self.failures = []

    def need(self, what, samples):
        if samples > self.limits[what]:
            self.failures.append((what, samples))
            raise self.error(f"CUDA out of memory in {what} of {samples}")

    def velocity(self, x_t, t, example):
        self.need("forward", len(x_t))
        v_t = super().velocity(x_t, t, example)
        if v_t.requires_grad:
            # Fails when backward is halfway: the factors of "leave" have their gradient by then.
            self.middle.register_hook(lambda _: self.need("backward", len(x_t)))
        return v_t

    def _layer(self, name, x):
        if name == "leave":
            self.middle = x
        return super()._layer(name, x)

    def decode(self, x_0):
        self.need("decode", len(x_0))
        return super().decode(x_0)


def run_of(policy, config, **options):
    """Metrics without timings, and the trained factors as one vector."""
    rows = []

    def listen(event):
        if isinstance(event, IterationEnd):
            rows.append({k: v for k, v in event.metrics.items() if k != "seconds"})

    Trainer(policy, Brightness(), PROMPTS, config, listener=listen, **options).train()
    factors = torch.cat([factor.detach().flatten() for factor in policy.adapter.parameters()])
    return rows, factors


CONFIGS = {
    "plain": toy_config(iterations=2),
    "recomputed, with reference, several updates": toy_config(
        iterations=1,
        optimizer=OptimizerConfig(learning_rate=5e-2, epochs=2, recompute_log_p=True),
        objective=ObjectiveConfig(clip_low=1e-3, clip_high=1e-3, kl_ref=0.1, ratio_norm=True),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    "limits",
    [
        {"forward": 5},
        {"forward": 1},
        {"backward": 3},
        {"forward": 6, "backward": 1},
        {"decode": 3},
    ],
    ids=str,
)
def test_a_small_memory_gives_the_numbers_of_a_small_batch(limits, config):
    """To the last bit, also where backward failed halfway and left part of a gradient."""
    policy = SmallMemory(**limits)
    rows, factors = run_of(policy, config)
    assert {what for what, _ in policy.failures} == set(limits)
    size = rows[0]["batch_size"]
    if "decode" not in limits:
        assert 1 <= size <= min(limits.values())
    expected, wanted = run_of(ToyPolicy(), replace(config, batch_size=size))
    assert torch.equal(factors, wanted)
    assert rows == expected
    assert all(row["ratio_error_first_update"] == 0.0 for row in rows)


def test_a_small_memory_gives_the_numbers_of_a_large_one():
    config = CONFIGS["plain"]
    (rows, _), (expected, _) = run_of(SmallMemory(forward=5), config), run_of(ToyPolicy(), config)
    for key in ("reward_mean", "grad_norm", "trained_passes", "approx_kl", "clip_fraction"):
        for found, row in zip(rows, expected, strict=True):
            assert found[key] == pytest.approx(row[key], rel=1e-4, abs=1e-9), key


def test_the_batch_that_fits_is_kept_and_tried_only_once():
    policy = SmallMemory(forward=3)
    run_of(policy, toy_config(iterations=2))
    assert policy.failures == [("forward", 4)]
    assert max(policy.calls) == 2  # calls that failed are not counted


@pytest.mark.slow
def test_one_sample_that_does_not_fit_is_an_error_that_says_what_to_do():
    policy = SmallMemory(forward=0)  # the first call is the common start of a group, in four rows
    limit = BatchLimit(advice="buy memory")
    with pytest.raises(NothingFits, match=r"one sample.*To need less, buy memory.*forward of 1"):
        run_of(policy, toy_config(), limit=limit)
    assert [samples for _, samples in policy.failures] == [4, 2, 1]


@pytest.mark.slow
def test_nothing_of_a_failed_try_is_left_when_the_cache_is_emptied():
    """Neither what its frames held nor what sat in a reference cycle."""
    held, alive = [], []

    def work():
        tensor, cycle = torch.zeros(3), {"tensor": torch.zeros(3)}
        cycle["self"] = cycle
        held.extend(weakref.ref(one) for one in (tensor, cycle["tensor"]))
        raise torch.OutOfMemoryError("no")

    limit = BatchLimit(
        size=4,
        empty_cache=lambda: alive.append([ref() for ref in held]),
    )
    with pytest.raises(NothingFits), torch.no_grad():
        limit.attempt(lambda: limit.fit(lambda x, t, example: work())(torch.zeros(4, 1), 1.0, ""))
    assert alive == [[None] * 2, [None] * 4, [None] * 6]  # of 4, 2 and 1 samples


def test_what_is_no_lack_of_memory_goes_through_at_once():
    limit, calls = BatchLimit(size=8), []

    def work():
        calls.append(1)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        limit.attempt(work)
    assert len(calls) == 1 and limit.size == 8


@pytest.mark.slow
def test_work_that_ignores_the_size_is_not_tried_for_ever():
    limit, calls = BatchLimit(), []

    def velocity(x_t, t, example):
        calls.append(len(x_t))
        raise torch.OutOfMemoryError

    with pytest.raises(NothingFits):
        limit.attempt(lambda: limit.fit(velocity)(torch.zeros(8, 1), 1.0, ""))
    assert calls == [8] * 4 and limit.size == 1


def test_the_host_says_what_a_lack_of_memory_is_and_hears_of_it():
    told = []
    limit = BatchLimit(
        is_out_of_memory=lambda error: "memory" in str(error),
        on_halved=lambda before, after: told.append((before, after)),
    )

    def function(samples):
        if len(samples) > 2:
            raise RuntimeError("out of memory")
        return 2 * samples

    samples = torch.arange(7.0)
    assert torch.equal(limit.join(function, samples), 2 * samples)
    assert told == [(7, 3), (3, 1)] and limit.size == 1


def test_an_error_that_only_the_host_knows_is_heard_in_every_phase():
    """Also in the self-test, which takes other errors for a model without gradients."""
    policy = SmallMemory(forward=6, backward=1)
    policy.error = RuntimeError
    limit = BatchLimit(is_out_of_memory=lambda error: type(error) is RuntimeError)
    config = toy_config(iterations=1, self_test=True)
    _, factors = run_of(policy, config, limit=limit)
    assert ("backward", 2) in policy.failures  # of the self-test: two samples
    assert torch.equal(factors, run_of(ToyPolicy(), replace(config, batch_size=1))[1])


@pytest.mark.slow
def test_evaluation_halves_too_and_scores_the_same_pictures():
    def scores(policy, limit=None):
        grid = toy_config().grid
        return evaluate(policy, Brightness(), PROMPTS[:2], grid, seeds=6, limit=limit).rewards

    limit = BatchLimit()
    found = scores(SmallMemory(forward=2, decode=4), limit)
    torch.testing.assert_close(found, scores(ToyPolicy()), rtol=1e-6, atol=1e-7)
    assert limit.size == 1  # 6, 3, 1; decoding 3 at a time does not count


def test_the_log_names_both_sizes(caplog):
    run_of(SmallMemory(forward=4), toy_config(iterations=1))
    assert "out of memory with 8 samples at once; going on with 4" in caplog.text


def test_memory_of_the_cpu_that_runs_out_halves_the_batch_too():
    limit = BatchLimit(size=4)

    def work():
        if limit.size == 4:
            torch.empty(10**16)  # no machine has it
        return limit.size

    limit.join(lambda x: x, torch.zeros(4))  # what runs is known
    assert limit.attempt(work) == 2
