"""The statistics of the study in benchmarks/chunk_vs_step, by hand and against SciPy."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from scipy import stats

from benchmarks.chunk_vs_step.stats import compare, estimate, holm, paired_p
from chunk_grpo_core.method.rules import Transition, gaussian_log_p


def test_holm_by_hand():
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([]) == []


def test_interval_and_p_by_hand():
    # Mean 2, standard deviation 1, n = 3: the 97.5 % point of t with 2 degrees is 4.302653.
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.high) == pytest.approx((2.0, 2.0 + 4.302653 / math.sqrt(3)))
    # t = 2 / (1 / sqrt 3) = 3.4641; with 2 degrees p = 1 - t / sqrt(t^2 + 2).
    assert paired_p([1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(Fraction(12, 14)))


def test_interval_and_p_are_those_of_scipy():
    a, b = [0.31, 0.28, 0.40, 0.22, 0.35], [0.25, 0.30, 0.31, 0.20, 0.27]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    theirs = stats.ttest_rel(a, b)
    found = estimate(differences)
    assert paired_p(differences) == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_one_run_has_no_interval_and_no_p():
    found = estimate([0.2])
    assert (found.mean, found.low, found.high) == (0.2, None, None)
    assert paired_p([0.2]) is None


def test_pairs_are_common_seeds_and_missing_tests_count_in_the_correction():
    gains = {
        ("a", "on"): {0: 1.0, 1: 2.0, 2: 3.0, 9: 50.0},
        ("b", "on"): {0: 0.0, 1: 0.0, 2: 0.0, 7: -50.0},
    }
    (found,) = compare(gains, [("a", "b", "on"), ("a", "c", "on"), ("c", "b", "on")])
    assert found.seeds == (0, 1, 2) and found.difference.values == (1.0, 2.0, 3.0)
    assert found.corrected_p == pytest.approx(3 * found.p)


@pytest.mark.parametrize("dimensions", [1024, 16_384])
def test_a_clip_is_reached_at_a_divergence_that_grows_with_the_latent(dimensions):
    """The law of the report: log r has mean -k / D and standard deviation sqrt(2 k) / D."""
    generator = torch.Generator().manual_seed(0)
    shift = 0.1 * torch.randn(dimensions, generator=generator)
    k = float(shift.square().sum() / 2.0)
    noise = torch.randn(2000, dimensions, generator=generator)
    old, new = Transition(torch.zeros(dimensions), 1.0), Transition(shift, 1.0)
    log_ratio = gaussian_log_p(noise, new) - gaussian_log_p(noise, old)
    assert float(log_ratio.mean()) == pytest.approx(-k / dimensions, rel=0.1)
    assert float(log_ratio.std()) == pytest.approx(math.sqrt(2.0 * k) / dimensions, rel=0.05)
