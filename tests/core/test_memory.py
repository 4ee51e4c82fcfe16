"""Memory of a backward pass does not depend on the length of the chunk; see benchmarks/memory.py.

The measure used here counts saved bytes, so that it is exact on any machine.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.memory import (
    METHODS,
    Case,
    check,
    load_policy,
    measure,
    saved_bytes,
    table,
    task_of,
)
from chunk_grpo_core.method.objective import ObjectiveConfig

WIDE = ObjectiveConfig(clip_low=1e-4, clip_high=1e-4)
STEPS, GROUP = 4, 4


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def model(request):
    """The tiny FLUX and its weights; gradients exist, and the B factors are not 0."""
    policy, weights = load_policy(request.param)
    generator = torch.Generator().manual_seed(0)
    for factor in policy.adapter.parameters():
        factor.grad = torch.zeros_like(factor)
        with torch.no_grad():
            factor.add_(0.02 * torch.randn(factor.shape, generator=generator).to(factor.device))
    return policy, weights


def gradient_of(policy, method, chunk):
    """The gradient that a method leaves, as one vector."""
    for factor in policy.adapter.parameters():
        factor.grad.zero_()
    METHODS[method](policy, task_of(policy, chunk, steps=STEPS, group=GROUP), WIDE)
    return torch.cat([factor.grad.flatten() for factor in policy.adapter.parameters()])


def saved_by(model, method, chunk):
    policy, weights = model
    task = task_of(policy, chunk, steps=STEPS, group=GROUP)
    return saved_bytes(weights, lambda: METHODS[method](policy, task, WIDE))


@pytest.mark.slow
@pytest.mark.parametrize("mixes_times", [True, False])
def test_saved_bytes_do_not_depend_on_the_length_of_the_chunk(model, mixes_times, monkeypatch):
    monkeypatch.setattr(model[0], "mixes_times", mixes_times)
    one = saved_by(model, "streamed", 1)
    assert one > 2**20
    for chunk in (2, 4):
        assert saved_by(model, "streamed", chunk) == pytest.approx(one, rel=1e-3)


def test_one_graph_of_the_chunk_saves_every_step(model):
    one, four = (saved_by(model, "one graph", chunk) for chunk in (1, 4))
    assert 3.9 * one < four <= 4.1 * one


def test_both_methods_give_the_same_gradient(model):
    policy, _ = model
    streamed, whole = (gradient_of(policy, method, 3) for method in METHODS)
    assert float(whole.norm()) > 0
    assert float((streamed - whole).norm() / whole.norm()) < 1e-4


@pytest.mark.gpu
def test_peak_memory_on_cuda_does_not_grow_with_the_chunk():
    one, eight = (measure("cuda", "streamed", chunk).peak for chunk in (1, 8))
    assert eight <= 1.1 * one


def test_the_meter_counts_each_storage_once_while_it_is_held():
    x, weight = torch.rand(100, requires_grad=True), torch.rand(100, requires_grad=True)

    def work():
        for _ in range(3):  # each graph is freed before the next one is built
            y = x.exp()  # saves its result: 400 bytes
            z = (y * y) * weight  # saves y again, then the product: 400 more, and the weight
            z.sum().backward()

    assert saved_bytes([weight], work) == 800
    assert saved_bytes([], work) == 1200


def case(method, steps, saved, peak):
    return Case(device="cpu", method=method, steps=steps, saved=saved, peak=peak)


def test_growth_above_the_limit_is_reported():
    mib = 2**20
    cases = [case("streamed", 1, 10 * mib, 20 * mib), case("streamed", 8, 11 * mib, 23 * mib)]
    whole = [case("one graph", 1, 10 * mib, 20 * mib), case("one graph", 8, 80 * mib, 150 * mib)]
    assert check([*cases, *whole]) == ["cpu, peak: 8 steps take 1.15 times 1 step"]
    lines = table([*cases, *whole]).splitlines()
    assert lines[-1] == "| cpu | one graph | 8 | 80.0 (8.00x) | 150.0 (7.50x) |"
