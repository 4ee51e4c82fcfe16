"""Warm-up, the average of the adapter, and that both survive a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import PROMPTS, Brightness, CancelAfter, ToyPolicy, toy_config
from torch import nn

from chunk_grpo_core.checkpoint import RunFolder
from chunk_grpo_core.config import OptimizerConfig
from chunk_grpo_core.ema import Ema
from chunk_grpo_core.events import Cancelled
from chunk_grpo_core.optimizer import AdapterOptimizer
from chunk_grpo_core.trainer import Trainer


def weights(state):
    return torch.cat([tensor.flatten() for tensor in state.values()])


def test_average_is_the_exponential_sum_of_all_weights():
    parameter = nn.Parameter(torch.tensor([1.0]))
    ema, seen = Ema([parameter], 0.8), [1.0]
    for value in (2.0, -1.0, 5.0):
        parameter.data.fill_(value)
        ema.update()
        seen.append(value)
    expected = 0.8**3 * seen[0] + 0.2 * sum(0.8 ** (3 - i) * seen[i] for i in (1, 2, 3))
    ema.apply()
    assert parameter.item() == pytest.approx(expected)


def test_warm_up_raises_the_learning_rate_linearly():
    parameter = nn.Parameter(torch.zeros(1))
    config = OptimizerConfig(learning_rate=0.1, warmup_updates=4, weight_decay=0.0, beta1=0.0)
    optimizer, moves = AdapterOptimizer([parameter], config), []
    for update in range(6):
        before = parameter.item()
        parameter.grad = torch.ones(1)
        optimizer.step(update)
        moves.append(before - parameter.item())
    assert moves == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rel=1e-3)


def test_a_gradient_that_is_not_finite_stops_the_run():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = AdapterOptimizer([parameter], OptimizerConfig())
    parameter.grad = torch.tensor([torch.nan])
    with pytest.raises(FloatingPointError, match="gradient of update 3 is nan"):
        optimizer.step(3)


def averaging(**changes):
    optimizer = OptimizerConfig(learning_rate=5e-2, ema_decay=0.7, warmup_updates=3)
    return toy_config(optimizer=optimizer, iterations=4, checkpoint_every=1, **changes)


def test_the_result_is_the_average_and_differs_from_the_last_weights():
    results = {}
    for decay in (0.7, None):
        policy = ToyPolicy()
        config = averaging()
        config = replace(config, optimizer=replace(config.optimizer, ema_decay=decay))
        Trainer(policy, Brightness(), PROMPTS, config).train()
        results[decay] = weights(policy.adapter.state_dict())
    assert not torch.allclose(results[0.7], results[None], atol=1e-4)


def test_a_resumed_run_has_the_same_average_and_warm_up(tmp_path):
    whole = ToyPolicy()
    Trainer(whole, Brightness(), PROMPTS, averaging()).train()

    folder, policy = RunFolder(tmp_path / "run"), ToyPolicy()
    folder.create(averaging(), {})
    with pytest.raises(Cancelled):
        Trainer(
            policy,
            Brightness(),
            PROMPTS,
            averaging(),
            run_folder=folder,
            check_cancel=CancelAfter(60),
        ).train()
    policy = ToyPolicy()
    trainer = Trainer(policy, Brightness(), PROMPTS, averaging(), run_folder=folder)
    assert 0 < trainer.resume() < 4
    trainer.train()
    assert torch.equal(weights(policy.adapter.state_dict()), weights(whole.adapter.state_dict()))


def test_an_average_cannot_appear_out_of_nothing(tmp_path):
    parameter = nn.Parameter(torch.zeros(1))
    plain = AdapterOptimizer([parameter], OptimizerConfig())
    averaged = AdapterOptimizer([parameter], OptimizerConfig(ema_decay=0.9))
    with pytest.raises(ValueError, match="0 averaged tensors, 1 are needed"):
        averaged.restore(plain.tensors())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_updates": -1}, "optimizer.warmup_updates is -1; it must be 0 or more"),
        ({"ema_decay": 1.0}, r"optimizer.ema_decay is 1.0; it must be in \(0, 1\), or None"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)
