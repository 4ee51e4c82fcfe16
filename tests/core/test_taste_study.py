"""Simulated clicks of ``benchmarks/taste`` and what is counted as agreement with more of them."""

import pytest
import torch

from benchmarks.taste.clicking import SHOWN, agreement, answers, clicks
from chunk_grpo_core.rewards.taste.fit import clicks_in

CAPTIONS = [f"caption {i}" for i in range(40)]


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", SHOWN)
def test_a_head_that_knows_all_agrees_always_and_one_that_knows_nothing_half_the_time(kind):
    likes = torch.rand(200, 16, generator=dice())
    assert agreement(likes, likes, 0.0, kind, dice()) == 1.0
    assert agreement(-likes, likes, 0.0, kind, dice()) == 0.0
    other = torch.rand(200, 16, generator=dice(1))
    assert agreement(other, likes, 0.0, kind, dice()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("kind", "expected"), [("duel", 0.8), ("like", 0.8)])
def test_wrong_clicks_cost_their_share(kind, expected):
    likes = torch.rand(400, 16, generator=dice())
    assert agreement(likes, likes, 0.2, kind, dice(1)) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("kind", SHOWN)
def test_as_many_clicks_are_made_as_the_report_counts(kind):
    likes = torch.rand(40, 16, generator=dice())
    picks = clicks(likes, 30, 0.1, 5, kind, captions=CAPTIONS)
    assert 30 <= clicks_in(picks) < 34 and (kind == "hearts" or clicks_in(picks) == 30)
    assert len({pick.shown[0].prompt for pick in picks}) == len(picks)


def test_hearts_are_for_the_best_and_crosses_for_the_worst():
    likes = torch.rand(200, 4, generator=dice())
    marks = answers("hearts", likes, 0.0, dice())
    hearts = (marks == 1).sum(1)
    assert set(hearts.tolist()) == {1, 2, 3} and 60 < int((marks == -1).sum()) < 140
    for row, mark in zip(likes, marks, strict=True):
        assert row[mark == 1].min() > row[mark < 1].max()
        assert (mark != -1)[row > row.min()].all()
