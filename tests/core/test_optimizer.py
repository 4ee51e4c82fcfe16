"""Warm-up, the average of the adapter, and that both survive a checkpoint."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from fakes import PROMPTS, Brightness, CancelAfter, ToyPolicy, toy_config
from torch import nn

from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.train.checkpoint import Checkpoints
from chunk_grpo_core.train.config import OptimizerConfig
from chunk_grpo_core.train.ema import Ema
from chunk_grpo_core.train.optimizer import AdapterOptimizer
from chunk_grpo_core.train.trainer import Trainer


def weights(state):
    return torch.cat([tensor.flatten() for tensor in state.values()])


def test_average_is_the_exponential_sum_of_all_weights():
    parameter = nn.Parameter(torch.tensor([1.0]))
    ema, seen = Ema([parameter], 0.8), [1.0]
    for number, value in enumerate((2.0, -1.0, 5.0), start=100):  # behind the warm-up
        parameter.data.fill_(value)
        ema.update(number)
        seen.append(value)
    expected = 0.8**3 * seen[0] + 0.2 * sum(0.8 ** (3 - i) * seen[i] for i in (1, 2, 3))
    ema.apply()
    assert parameter.item() == pytest.approx(expected)


def test_the_average_of_a_short_run_keeps_what_was_learned():
    parameter = nn.Parameter(torch.zeros(1))
    ema = Ema([parameter], 0.9869)
    for number in range(30):
        parameter.data.fill_(number + 1.0)
        ema.update(number)
    ema.apply()
    assert 0.85 * 30 <= parameter.item() < 30


def test_the_decay_of_the_average_rises_to_its_value():
    parameter = nn.Parameter(torch.ones(1))
    ema = Ema([parameter], 0.7)
    parameter.data.zero_()
    kept, before = [], 1.0
    for number in (0, 1, 10, 20, 1000):
        ema.update(number)
        now = ema.tensors()["ema.0"].item()
        kept.append(now / before)
        before = now
    assert kept == pytest.approx([1 / 10, 2 / 11, 11 / 20, 0.7, 0.7])


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

    checkpoints, policy = Checkpoints(tmp_path / "run"), ToyPolicy()
    with pytest.raises(Cancelled):
        Trainer(
            policy,
            Brightness(),
            PROMPTS,
            averaging(),
            checkpoints=checkpoints,
            check_cancel=CancelAfter(60),
        ).train()
    policy = ToyPolicy()
    trainer = Trainer(policy, Brightness(), PROMPTS, averaging(), checkpoints=checkpoints)
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
        ({"name": "lion"}, "optimizer.name is 'lion'; it must be one of adamw, adamw8bit"),
        (
            {"warmup_updates": -1},
            "optimizer.warmup_updates is -1; it must be a whole number from 0 to 100000",
        ),
        (
            {"ema_decay": 1.0},
            "optimizer.ema_decay is 1.0; it must be a number from 0.0001 to 0.99999, or none",
        ),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)


# 8 bits


class EightBit(torch.optim.Optimizer):
    """What is peculiar about the state of bitsandbytes: steps are an int, moments are bytes that no
    load may turn into floats, and state_dict() has a further level."""

    made: list[dict] = []
    _LEVEL = "__bnb_optimizer_quant_state__"

    def __init__(self, params, **settings):
        super().__init__(params, settings)
        EightBit.made.append(settings)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(step=0, state1=torch.zeros_like(parameter, dtype=torch.uint8))
                assert type(state["step"]) is int and state["state1"].dtype == torch.uint8
                state["step"] += 1
                state["state1"] += (parameter.grad > 0).byte()
                parameter -= group["lr"] * parameter.grad * state["state1"] / state["step"]

    def state_dict(self):
        found = super().state_dict()
        for index, state in found["state"].items():
            found["state"][index] = {
                "step": state["step"],
                self._LEVEL: {"state1": state["state1"]},
            }
        return found

    def load_state_dict(self, state_dict):
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, state in state_dict["state"].items():
            self.state[parameters[index]] = state | state.pop(self._LEVEL, {})


@pytest.fixture
def bitsandbytes(monkeypatch):
    """A stand-in for the package, which needs no GPU; what its optimisers were made with."""
    package = ModuleType("bitsandbytes")
    package.optim = SimpleNamespace(AdamW8bit=EightBit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setattr(EightBit, "made", [])
    return EightBit.made


def eight_bits(**changes):
    optimizer = OptimizerConfig(name="adamw8bit", learning_rate=5e-2, warmup_updates=3, **changes)
    return toy_config(optimizer=optimizer, iterations=3, checkpoint_every=1, self_test=False)


def test_adamw8bit_gets_the_settings_of_the_run(bitsandbytes):
    config = OptimizerConfig(name="adamw8bit", learning_rate=3e-3, beta2=0.98, weight_decay=0.2)
    AdapterOptimizer([nn.Parameter(torch.zeros(1))], config)
    expected = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-10, "weight_decay": 0.2}
    assert bitsandbytes == [expected]
    AdapterOptimizer([nn.Parameter(torch.zeros(1))], OptimizerConfig())
    assert len(bitsandbytes) == 1


def test_a_resumed_run_has_the_same_8_bit_moments(tmp_path, bitsandbytes):
    whole = ToyPolicy()
    Trainer(whole, Brightness(), PROMPTS, eight_bits()).train()
    checkpoints, config = Checkpoints(tmp_path / "run"), eight_bits()
    first = replace(config, iterations=1)
    Trainer(ToyPolicy(), Brightness(), PROMPTS, first, checkpoints=checkpoints).train()
    policy = ToyPolicy()
    trainer = Trainer(policy, Brightness(), PROMPTS, config, checkpoints=checkpoints)
    assert trainer.resume() == 1
    trainer.train()
    assert torch.equal(weights(policy.adapter.state_dict()), weights(whole.adapter.state_dict()))


def test_the_real_package_steps_like_adamw_and_resumes_to_the_last_bit():
    """Where it is installed; it also works on a CPU. Small tensors keep 32 bits."""
    pytest.importorskip("bitsandbytes")
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(64, 128, generator=generator) for _ in range(4)]

    def stepped(name, resume):
        config = OptimizerConfig(name=name, learning_rate=1e-2)
        parameter = nn.Parameter(torch.zeros(64, 128))
        optimizer = AdapterOptimizer([parameter], config)
        for update, gradient in enumerate(gradients):
            parameter.grad = gradient.clone()
            optimizer.step(update)
            if resume:
                before, optimizer = optimizer.tensors(), AdapterOptimizer([parameter], config)
                optimizer.restore(before)
        return parameter.detach(), optimizer.tensors()

    (found, state), (again, _) = (stepped("adamw8bit", resume) for resume in (False, True))
    assert state["0.state1"].dtype == state["0.state2"].dtype == torch.uint8
    assert torch.equal(found, again)
    exact = stepped("adamw", False)[0]
    assert float((found - exact).norm() / exact.norm()) < 0.1


def test_without_bitsandbytes_the_run_does_not_begin_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ImportError, match=r"adamw8bit.*pip install .*chunk-grpo-core\[low-memory\]"
    ):
        Trainer(ToyPolicy(), Brightness(), PROMPTS, eight_bits())
