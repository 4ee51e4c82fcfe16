"""What the self-test catches in a real architecture: a sample of benchmarks/self_test_power.py."""

from __future__ import annotations

import pytest

from benchmarks.self_test_power import is_caught, layer_faults, whole_faults
from benchmarks.self_test_runs import RANDOM, Run, start
from chunk_grpo_core.train.self_test import STANDARD

EVERY = 19
"""Of the tiny FLUX's 39 layers: the first, the middle and the last one."""


@pytest.mark.parametrize("is_trained", [False, True])
def test_in_float32_wrong_gradients_are_caught_and_right_ones_pass(is_trained):
    def work(run: Run) -> None:
        assert not is_caught(run, STANDARD)
        for factor in (0.9, 1.1, 1.01):
            assert whole_faults(run, STANDARD, factor) == (1, 1)
        for factor in (0.0, -1.0):
            assert layer_faults(run, STANDARD, factor, EVERY) == (3, 3)

    start("float32", is_trained, 0, work)


@pytest.mark.parametrize("precision", ["bfloat16", "fp8"])
def test_in_lower_precision_layers_without_a_gradient_are_caught(precision):
    def work(run: Run) -> None:
        assert not is_caught(run, STANDARD)
        assert layer_faults(run, STANDARD, 0.0, EVERY) == (3, 3)
        assert whole_faults(run, STANDARD, 1.5) == (1, 1)

    start(precision, False, 0, work)


@pytest.mark.parametrize(("is_trained", "seed"), [(False, 1000), (True, 1005)])
def test_layers_that_hardly_matter_and_saturate_are_no_fault_in_lower_precision(is_trained, seed):
    def work(run: Run) -> None:
        assert not is_caught(run, STANDARD)
        assert layer_faults(run, STANDARD, 0.0, 11) == (4, 4)
        assert whole_faults(run, STANDARD, 1.5) == (1, 1)
        assert whole_faults(run, STANDARD, 0.7) == (1, 1)

    start("bfloat16", is_trained, seed, work, model=RANDOM)
