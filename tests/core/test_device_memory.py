"""Trajectories live in system memory; the device holds the step in use and nothing else.

There is no accelerator here. A mode of torch makes one up: what was sent to it holds plain numbers,
but cannot meet a tensor of the CPU, as on a real one, and its bytes are counted while they live.
"""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.group_task import GroupTask
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.method.stream import Stream
from chunk_grpo_core.method.streaming import accumulate_group, with_reference

DEVICE = torch.device("meta")  # any that is not the CPU; no tensor is really made there
LATENT, GROUP = (2, 8, 8), 6
STATE = GROUP * 2 * 8 * 8 * 4  # bytes of the whole group at one level


class OnDevice(Tensor):
    """Plain numbers that count as being on the device."""


class Device(TorchFunctionMode):
    """Inside it there is an accelerator; keeps the most bytes that ever lived on it."""

    def __init__(self):
        super().__init__()
        self.peak, self._alive = 0, {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        device = next((a for a in (*args[1:], *kwargs.values()) if type(a) is torch.device), None)
        if name == "to" and device == DEVICE:
            return self._count(args[0].clone().as_subclass(OnDevice))
        if name == "cpu" or (name == "to" and str((*args, "")[1]) == "cpu"):
            return args[0].detach().clone().as_subclass(Tensor)
        if func == Tensor.device.__get__ and isinstance(args[0], OnDevice):
            return DEVICE
        tensors = [a for a in _flat((args, kwargs)) if isinstance(a, Tensor) and a.dim()]
        assert len({isinstance(a, OnDevice) for a in tensors}) < 2, f"{name} mixes two devices"
        return self._count(func(*args, **kwargs))

    def _count(self, result):
        for tensor in _flat(result):
            if isinstance(tensor, OnDevice):
                key, size = tensor.data_ptr(), tensor.untyped_storage().nbytes()
                self._alive[key] = size
                weakref.finalize(tensor, self._alive.pop, key, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def _flat(tree):
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return (
        [leaf for item in tree for leaf in _flat(item)] if type(tree) in (tuple, list) else [tree]
    )


def velocity_of(factor):
    def velocity(x_t, t, example):
        assert isinstance(x_t, OnDevice)
        return torch.tanh(x_t * factor)

    return velocity


def task_of(steps, batch_size=None):
    """A group of ``steps`` steps, ready to be trained on, and the bytes that its rollout took."""
    with Device() as device:
        factor = torch.full((8,), 0.3).to(DEVICE)
        trajectory = rollout(
            velocity_of(factor),
            "p",
            shifted_grid(steps),
            SdeConfig(),
            Noise(False, 3, GROUP),
            LATENT,
            device=DEVICE,
            batch_size=batch_size,
            keep_means=True,
        )
    plan = ChunkPlan((steps - 1,))
    drawn = torch.ones(GROUP, 1, dtype=torch.bool)
    return GroupTask(trajectory, plan, torch.linspace(-1, 1, GROUP), drawn), device.peak


CONFIG = ObjectiveConfig(clip_low=1e-2, clip_high=1e-2, kl_ref=0.1, kl_old=0.1)


def update_peak(steps, batch_size=None, is_on_policy=False):
    """Bytes that the gradient of a group takes, the reference included."""
    task, _ = task_of(steps, batch_size)
    options = {"device": DEVICE, "batch_size": batch_size}
    with Device() as device:
        factor = torch.full((8,), 0.31).to(DEVICE).requires_grad_(True)
        task = with_reference(Stream(velocity_of(factor.detach()), **options), task, CONFIG)
        stream = Stream(velocity_of(factor), **options)
        accumulate_group(stream, task, CONFIG, scale=1.0, is_on_policy=is_on_policy)
    assert factor.grad is not None and float(factor.grad.as_subclass(Tensor).norm()) > 0
    assert type(task.reference.v_t) is Tensor
    return device.peak


def test_what_a_rollout_keeps_is_in_system_memory():
    task, _ = task_of(5)
    trajectory = task.trajectory
    for tensor in (trajectory.states, trajectory.log_p, trajectory.means, trajectory.stochastic):
        assert type(tensor) is Tensor and tensor.device.type == "cpu"
    assert trajectory.states.shape == (6, GROUP, *LATENT) and trajectory.states[1:].any()


def test_a_rollout_takes_no_more_with_more_steps_and_less_with_a_smaller_batch():
    few, many = task_of(4)[1], task_of(12)[1]
    assert STATE < few == many
    assert task_of(12, batch_size=2)[1] < 0.5 * many


@pytest.mark.parametrize("is_on_policy", [True, False])
def test_an_update_takes_no_more_with_more_steps_and_less_with_a_smaller_batch(is_on_policy):
    few, many = (update_peak(steps, is_on_policy=is_on_policy) for steps in (4, 12))
    assert STATE < few == many
    assert update_peak(12, batch_size=2, is_on_policy=is_on_policy) < 0.6 * many


def test_the_meter_sees_what_is_kept_and_what_is_mixed():
    with Device() as device:
        first = torch.zeros(10).to(DEVICE)
        kept = [first + i for i in range(5)]
        assert device.peak == 6 * 40
        del kept
        again = first * 2
        assert device.peak == 6 * 40 and sum(device._alive.values()) == 80
        with pytest.raises(AssertionError, match="mixes two devices"):
            torch.add(again, torch.zeros(10))
