"""Options that make training faster leave its numbers as they are, up to rounding.

Compilation needs a C++ compiler; the test of it says so where there is none.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from environment import unavailable
from fakes import Brightness
from torch._functorch import config as functorch_config

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.attention import ATTENTION
from chunk_grpo_core.models.flux.config import FluxModel
from chunk_grpo_core.models.speed import speed_up
from chunk_grpo_core.models.tiny import policy as tiny
from chunk_grpo_core.models.tiny.model import load_tiny_flux
from chunk_grpo_core.models.tiny.policy import tiny_policy
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.train.config import OptimizerConfig, TrainConfig
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.optimizer import AdapterOptimizer
from chunk_grpo_core.train.trainer import Trainer


def test_a_call_does_not_ask_the_transformer_for_its_type(monkeypatch):
    """The answer walks through all modules, with FLUX.1 for as long as a seventh of a call."""
    policy, asked = tiny_policy(), []
    monkeypatch.setattr(type(policy.transformer), "dtype", property(asked.append))
    with torch.no_grad():
        policy.run(
            lambda velocity: velocity(torch.zeros(1, *policy.latent_shape), 0.5, "a red circle")
        )
    assert not asked


def trained(iterations=1, optimizer=None, lora=None, **options):
    """Rows and adapter of a short training of the tiny FLUX."""
    policy, rows = tiny_policy(lora), []
    speed_up(
        policy.transformer,
        FluxModel(**{"gradient_checkpointing": False, **options}),
        policy.blocks,
    )
    config = TrainConfig(
        grid=shifted_grid(5, 3.0),
        plan=ChunkPlan((1, 3)),
        iterations=iterations,
        prompts_per_iteration=2,
        group_size=4,
        optimizer=optimizer or OptimizerConfig(),
    )
    Trainer(
        policy,
        Brightness(),
        [caption(scene) for scene in TRAIN[:2]],
        config,
        listener=lambda event: rows.append(event.metrics) if isinstance(event, IterationEnd) else 0,
    ).train()
    return rows, torch.cat([p.detach().flatten() for p in policy.adapter.parameters()])


@pytest.fixture(scope="module")
def plain():
    return trained()


def assert_same(found, plain):
    (rows, adapter), (expected, wanted) = found, plain
    assert rows[0]["reward_mean"] == pytest.approx(expected[0]["reward_mean"], rel=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-3)
    # Adam's first steps are as large as the learning rate, 3e-4, whatever the gradient.
    assert float((adapter - wanted).abs().mean()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["native", "native-math"])
def test_an_attention_kernel_changes_rounding_alone_and_no_ratio(attention, plain):
    found = trained(attention=attention)
    assert_same(found, plain)
    assert found[0][0]["ratio_error_first_update"] == 0.0


@pytest.mark.slow
def test_checkpointing_changes_rounding_alone(plain):
    assert_same(trained(gradient_checkpointing=True), plain)


@pytest.fixture
def few_blocks(monkeypatch):
    """One block of each kind: the compiler takes minutes for all of them."""
    if shutil.which("g++") is None:
        unavailable("torch.compile needs a C++ compiler")

    def load(path):
        flux = load_tiny_flux(path)
        for kind in ("transformer_blocks", "single_transformer_blocks"):
            setattr(flux.transformer, kind, getattr(flux.transformer, kind)[:1])
        return flux

    monkeypatch.setattr(tiny, "load_tiny_flux", load)
    with functorch_config.patch(activation_memory_budget=1.0):  # puts it back, too
        yield


@pytest.mark.slow
def test_compiled_blocks_train_as_plain_ones(few_blocks):
    """With one small LoRA: the compiler takes minutes for all of them."""
    lora = LoraConfig(targets=r".+\.to_q")
    recomputed = OptimizerConfig(recompute_log_p=True)  # as on accelerators
    found = trained(lora=lora, compile=True, optimizer=recomputed)
    assert_same(found, trained(lora=lora))
    assert found[0][0]["ratio_error_first_update"] < 1e-6


@pytest.mark.slow
def test_a_budget_of_compiled_blocks_keeps_less_and_changes_rounding_alone(few_blocks):
    lora, held, adapters = LoraConfig(targets=r".+\.to_q"), [], []
    for budget in (1.0, 0.5):
        torch._dynamo.reset()
        kept: list[int] = []

        def keep(tensor, kept=kept):
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            adapters.append(trained(lora=lora, compile=True, activation_budget=budget))
        held.append(sum(kept))
    assert held[1] < held[0]  # exact: bytes, not time
    assert_same(*adapters)


def test_a_budget_without_compiled_blocks_is_refused():
    with pytest.raises(ValueError, match="activation_budget is 0.5, which needs model.compile; tu"):
        speed_up(tiny_policy().transformer, FluxModel(activation_budget=0.5), ())


@pytest.mark.slow
def test_a_policy_knows_that_it_is_compiled():
    policy = tiny_policy()
    assert not policy.is_compiled
    speed_up(policy.transformer, FluxModel(compile=True), policy.blocks)
    assert policy.is_compiled


def test_unknown_kernels_and_those_without_a_backward_pass_are_refused():
    for name in ("sage", "flash_hub", "fast"):
        with pytest.raises(ValueError, match=f"model.attention is '{name}'; it must be one of nat"):
            FluxModel(attention=name)
    assert "sage" not in ATTENTION


def test_a_kernel_whose_package_is_missing_says_so():
    with pytest.raises(ValueError, match="model.attention is flash-3, which does not work here: "):
        speed_up(tiny_policy().transformer, FluxModel(attention="flash-3"), ())


def steps_of(config, resume_after=None):
    """Weights after six updates, kept and put back after some of them if asked."""
    parameters = [torch.nn.Parameter(torch.full((3,), float(i + 1))) for i in range(4)]
    optimizer = AdapterOptimizer(parameters, config)
    for update in range(6):
        if update == resume_after:
            state = optimizer.tensors()
            optimizer = AdapterOptimizer(parameters, config)
            optimizer.restore(state)
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.sin(torch.arange(3.0) + i + update)
        optimizer.step(update)
    return torch.cat([parameter.detach() for parameter in parameters])


def test_the_fused_optimiser_takes_the_same_steps_and_resumes():
    plain, fused = OptimizerConfig(), OptimizerConfig(fused=True)
    assert torch.allclose(steps_of(plain), steps_of(fused), rtol=1e-6, atol=1e-7)
    assert torch.equal(steps_of(fused), steps_of(fused, resume_after=3))


def test_a_fused_8_bit_optimiser_is_refused():
    with pytest.raises(ValueError, match="optimizer.fused is true, but adamw8bit has no fused"):
        OptimizerConfig(name="adamw8bit", fused=True)
