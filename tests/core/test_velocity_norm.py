"""How long velocities have become: the value where it is known, and how many calls it takes."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from chunk_grpo_core.method.stream import Stream
from chunk_grpo_core.train.velocity_norm import CALLS, velocity_norm

LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)


class Longer:
    """Velocities that the adapter makes ``1 + t`` times as long."""

    def __init__(self):
        self.calls, self.is_on, self.adapter = [], True, self

    @contextmanager
    def disabled(self):
        self.is_on = False
        yield
        self.is_on = True

    def velocity(self, x_t, t, example):
        self.calls.append(len(x_t))
        assert example == "a fox"
        t = torch.as_tensor(t).expand(len(x_t)).view(-1, 1, 1, 1)
        return x_t * (1.0 + t) if self.is_on else x_t


def measured(mixes_times, pictures=3):
    policy = Longer()
    x_0 = torch.randn(pictures, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    trajectory = SimpleNamespace(
        grid=SimpleNamespace(steps=4, sigmas=LEVELS), x_0=x_0, example="a fox"
    )
    request = SimpleNamespace(noise=SimpleNamespace(seed=5))
    group = SimpleNamespace(trajectory=trajectory, request=request)
    stream = Stream(policy.velocity, mixes_times=mixes_times)
    return velocity_norm(stream, policy, [group]), policy


@pytest.mark.parametrize(("mixes_times", "calls"), [(True, [4, 4]), (False, [2, 2, 2, 2])])
def test_it_is_the_mean_over_two_levels(mixes_times, calls):
    value, policy = measured(mixes_times)
    assert value == pytest.approx((1.75 + 1.5) / 2, rel=1e-6)
    assert policy.calls == calls and sum(calls) == CALLS and policy.is_on


def test_one_picture_is_enough_and_none_says_nothing():
    assert measured(True, pictures=1)[0] == pytest.approx(1.625, rel=1e-6)
    policy = Longer()
    assert velocity_norm(Stream(policy.velocity), policy, []) is None
