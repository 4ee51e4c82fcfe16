"""The 95 % interval covers the truth 95 times in a hundred, however few prompts there are."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from chunk_grpo_core.measure.evaluate import Evaluation, paired_gain
from chunk_grpo_core.measure.interval import Interval, mean_interval, t_quantile


@pytest.mark.parametrize(("degrees", "printed"), [(1, 12.706), (2, 4.303), (7, 2.365), (23, 2.069)])
def test_quantiles_are_those_of_printed_tables(degrees, printed):
    assert round(t_quantile(0.95, degrees), 3) == printed


@pytest.mark.parametrize("probability", [0.5, 0.95, 0.99])
def test_quantiles_are_those_of_scipy(probability):
    degrees = [*range(1, 40), 100, 999, 2000]
    ours = [t_quantile(probability, n) for n in degrees]
    theirs = stats.t.ppf((1 + probability) / 2, degrees)
    assert ours == pytest.approx(list(theirs), rel=1e-8)


@pytest.mark.parametrize("n", [2, 4, 8, 24])
def test_the_interval_covers_the_true_mean_95_times_in_a_hundred(n):
    draws = 0.3 + torch.randn(10_000, n, generator=torch.Generator().manual_seed(n)).double()
    intervals = [mean_interval(values) for values in draws]
    coverage = sum(i.low <= 0.3 <= i.high for i in intervals) / len(intervals)
    assert 0.94 < coverage < 0.96


def test_the_gain_over_prompts_has_this_interval():
    before, after = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    one, other = (
        Evaluation(tuple("abcde"), scores, {}, torch.zeros(5, 2, 2, 3))
        for scores in (before, after)
    )
    gains = (after - before).mean(1)
    found, theirs = paired_gain(one, other), stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_fewer_than_two_values_have_no_interval():
    one = mean_interval(torch.tensor([0.5]))
    assert (one.mean, one.interval()) == (0.5, "no interval with one prompt")
    none = mean_interval(torch.tensor([]))
    assert isinstance(none, Interval) and math.isnan(none.mean)
    assert none.interval() == "no interval"


def test_small_gains_keep_two_figures():
    said = [
        f"{one.mean:+.{one.digits}f} ({one.bounds()})"
        for one in (
            Interval(0.02, 0.01, 0.03),
            Interval(0.000012, -0.000004, 0.000028),
            Interval(0.000012, math.nan, math.nan),
            Interval(0.0, 0.0, 0.0),
        )
    ]
    assert said == [
        "+0.0200 (+0.0100 to +0.0300)",
        "+0.000012 (-0.000004 to +0.000028)",
        "+0.000012 (no interval with one prompt)",
        "+0.0000 (+0.0000 to +0.0000)",
    ]
