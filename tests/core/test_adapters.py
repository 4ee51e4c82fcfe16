"""LoRA on a small diffusers FLUX, and the FLUX policy."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel
from fakes import Brightness
from small_flux import (
    LORA,
    base_velocity,
    encode,
    latents,
    shaken,
    small_flux,
    small_policy,
    velocity_of,
)
from torch import nn

from chunk_grpo_core.lora.adapter import (
    LoraConfig,
    PeftAdapter,
    initial_factors,
)
from chunk_grpo_core.lora.targets import TARGET_PRESETS, target_pattern
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.flux.policy import FluxPolicy, pack_latents, unpack_latents
from chunk_grpo_core.train.config import OptimizerConfig, TrainConfig
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer


def test_fresh_lora_is_the_identity_to_the_last_bit():
    assert torch.equal(velocity_of(small_policy()), base_velocity())


def test_disabled_lora_is_the_identity_after_training():
    policy = small_policy()
    shaken(policy.adapter)
    moved = velocity_of(policy)
    assert not torch.allclose(moved, base_velocity(), atol=1e-3)
    with policy.adapter.disabled():
        assert torch.equal(velocity_of(policy), base_velocity())
    assert torch.equal(velocity_of(policy), moved)
    with pytest.raises(RuntimeError), policy.adapter.disabled():
        raise RuntimeError
    assert torch.equal(velocity_of(policy), moved)


def test_state_dict_round_trips_into_existing_parameters():
    policy, other = small_policy(), small_policy()
    state = shaken(policy.adapter).state_dict()
    held = other.adapter.parameters()
    other.adapter.load_state_dict(state)
    assert torch.equal(velocity_of(other), velocity_of(policy))
    assert all(a is b for a, b in zip(held, other.adapter.parameters(), strict=True))
    before = {name: tensor.clone() for name, tensor in state.items()}
    shaken(policy.adapter)  # the state is a copy
    assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(next(iter(s))), "missing: .*lora_A"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda s: s.update({next(iter(s)): torch.zeros(1, 2)}), r"\(1, 2\) instead of \(4, "),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message):
    adapter = small_policy().adapter
    state = adapter.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        adapter.load_state_dict(state)


@pytest.mark.parametrize(
    ("targets", "inside", "outside"),
    [
        ("attention", {"attn.to_q", "attn.to_out.0"}, {"ff.net.2", "proj_out", "norm1.linear"}),
        ("attention+mlp", {"attn.to_q", "ff.net.0.proj", "proj_mlp"}, {"norm1.linear"}),
        ("all-linear", {"attn.to_q", "norm1.linear", "norm.linear"}, {"x_embedder"}),
        (r".*\.to_[qk]", {"attn.to_q", "attn.to_k"}, {"attn.to_v"}),
    ],
)
def test_targets_choose_the_layers(targets, inside, outside):
    transformer = small_flux()
    adapter = PeftAdapter(transformer, LoraConfig(rank=2, alpha=2.0, targets=targets), seed=0)
    names = {name.removesuffix(".lora_A.weight") for name in adapter.state_dict() if "_A." in name}
    leaves = {name.split(".", 2)[-1] for name in names}
    assert inside <= leaves and not outside & leaves
    injected = {name for name, module in transformer.named_modules() if hasattr(module, "lora_A")}
    assert injected == names
    trainable = {id(p) for p in transformer.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapter.parameters()}


_SPLIT = ("to_q", "to_k", "to_v")
_FLUX_LAYERS = {
    "attention": {
        "transformer_blocks": {
            *(f"attn.{name}" for name in (*_SPLIT, "to_out.0", "to_add_out")),
            *(f"attn.add_{name}_proj" for name in "qkv"),
        },
        "single_transformer_blocks": {f"attn.{name}" for name in _SPLIT},
    },
    "attention+mlp": {
        "transformer_blocks": {
            f"{ff}.net.{layer}" for ff in ("ff", "ff_context") for layer in ("0.proj", "2")
        },
        "single_transformer_blocks": {"proj_mlp", "proj_out"},
    },
    "all-linear": {
        "transformer_blocks": {"norm1.linear", "norm1_context.linear"},
        "single_transformer_blocks": {"norm.linear"},
    },
}
"""Preset -> list of blocks -> layers of a block that it takes beyond those of the one before."""


@pytest.mark.parametrize("preset", _FLUX_LAYERS)
def test_the_presets_of_flux_take_these_layers_and_no_others(preset):
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=2, num_single_layers=3)
    names = [name for name, child in transformer.named_modules() if isinstance(child, nn.Linear)]
    presets = list(_FLUX_LAYERS)
    expected = {
        f"{blocks}.{index}.{layer}"
        for blocks, count in (("transformer_blocks", 2), ("single_transformer_blocks", 3))
        for index in range(count)
        for smaller in presets[: presets.index(preset) + 1]
        for layer in _FLUX_LAYERS[smaller][blocks]
    }
    for patterns in (FluxPolicy.targets, TARGET_PRESETS):  # the nodes take the same ones
        pattern = target_pattern(preset, patterns)
        assert {name for name in names if pattern.fullmatch(name)} == expected
    assert FluxPolicy.targets.keys() == TARGET_PRESETS.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank is 0; it must be a whole number from 1 to 4096"),
        ({"alpha": 0.0}, "lora.alpha is 0.0; it must be a number from 0.001 to 65536"),
        ({"targets": "("}, r"lora.targets is '\(': not one of attention, .*regular expression"),
    ],
)
def test_bad_lora_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**settings)


@pytest.mark.parametrize(("rs", "scale", "file_alpha"), [(False, 0.5, 8.0), (True, 2.0, 32.0)])
def test_scale_and_what_files_say_of_it(rs, scale, file_alpha):
    config = LoraConfig(rank=16, alpha=8.0, rs=rs)
    assert (config.scale, config.file_alpha) == (scale, file_alpha)
    assert config.file_alpha / config.rank == config.scale  # how every loader reads a file


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match="'nothing' matches no linear layer"):
        PeftAdapter(small_flux(), LoraConfig(targets="nothing"), seed=0)


def test_initial_factors_depend_on_seed_and_name_alone():
    a, b = initial_factors("block.0", 16, 8, 4, seed=3)
    assert a.shape == (4, 16) and b.shape == (8, 4) and (b == 0).all()
    assert 0.2 < float(a.abs().max()) <= 0.25  # 1 / sqrt(16)
    torch.manual_seed(1)
    assert torch.equal(initial_factors("block.0", 16, 8, 4, seed=3)[0], a)
    assert not torch.equal(initial_factors("block.1", 16, 8, 4, seed=3)[0], a)
    assert not torch.equal(initial_factors("block.0", 16, 8, 4, seed=4)[0], a)
    state = small_policy().adapter.state_dict()
    name = "transformer_blocks.0.attn.to_q"
    expected, _ = initial_factors(name, 64, 64, LORA.rank, seed=0)
    assert torch.equal(state[f"{name}.lora_A.weight"], expected)


def test_velocity_of_a_batch_is_that_of_its_micro_batches():
    policy = small_policy()
    shaken(policy.adapter)
    x_t = latents(8)
    whole = velocity_of(policy, x_t)
    for size in (1, 2, 4):
        parts = torch.cat([velocity_of(policy, part) for part in x_t.split(size)])
        assert torch.allclose(parts, whole, atol=1e-6)


def test_caption_is_encoded_once():
    calls = []
    policy = small_policy(encode=lambda caption: calls.append(caption) or encode(caption))
    velocity_of(policy), velocity_of(policy)
    assert calls == ["a fox"]


def test_packing_is_that_of_the_diffusers_pipeline():
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    x = torch.randn(2, 4, 6, 8)
    tokens = pack_latents(x)
    assert torch.equal(tokens, FluxPipeline._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpack_latents(tokens, 6, 8), x)
    with pytest.raises(ValueError, match=r"even, even\), got \(2, 4, 5, 8\)"):
        pack_latents(torch.zeros(2, 4, 5, 8))
    with pytest.raises(ValueError, match="12 tokens do not fill latents of 6 x 6"):
        unpack_latents(tokens, 6, 6)


def test_flux_trains_with_a_first_ratio_of_one():
    policy, rows = small_policy(), []
    config = TrainConfig(
        grid=shifted_grid(4),
        plan=ChunkPlan((1, 2)),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        lora=LORA,
        iterations=2,
        prompts_per_iteration=2,
        group_size=4,
    )
    Trainer(
        policy,
        Brightness(),
        ["a fox", "two foxes"],
        config,
        listener=lambda event: rows.append(event.metrics) if type(event) is IterationEnd else None,
    ).train()
    assert [row["ratio_error_first_update"] for row in rows] == [0.0, 0.0]
    assert not torch.equal(velocity_of(policy), base_velocity())
    with policy.adapter.disabled():
        assert torch.equal(velocity_of(policy), base_velocity())
