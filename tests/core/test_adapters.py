"""LoRA on a small diffusers FLUX, the FLUX policy, and the two file layouts."""

from __future__ import annotations

import pytest
import torch
from fakes import Brightness
from safetensors import safe_open

from chunk_grpo_core.chunks import ChunkPlan
from chunk_grpo_core.config import OptimizerConfig, TrainConfig
from chunk_grpo_core.events import IterationEnd
from chunk_grpo_core.export import (
    adapter_of_native,
    diffusers_lora,
    native_lora,
    native_to_diffusers,
    save_lora,
)
from chunk_grpo_core.lora import LoraConfig, PeftAdapter, initial_factors
from chunk_grpo_core.models.flux import FluxPolicy, pack_latents, unpack_latents
from chunk_grpo_core.schedule import shifted_grid
from chunk_grpo_core.trainer import Trainer

LORA = LoraConfig(rank=4, alpha=6.0)
SHAPE = (4, 4, 4)


def small_flux():
    """The same FLUX at every call: hidden size 64, one block of each kind, random weights."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            axes_dims_rope=(8, 12, 12),
        ).eval()


def encode(caption):
    generator = torch.Generator().manual_seed(len(caption))
    return torch.randn(1, 3, 24, generator=generator), torch.randn(1, 16, generator=generator)


def small_policy(transformer=None, lora=LORA):
    return FluxPolicy(
        name="small",
        transformer=transformer or small_flux(),
        encode=encode,
        decode=lambda x_0: torch.sigmoid(x_0[:, :3]).permute(0, 2, 3, 1),
        latent_shape=SHAPE,
        lora=lora,
    )


def shaken(adapter):
    """Move every weight, as training would."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter


@torch.no_grad()
def velocity_of(policy, x_t=None):
    x_t = latents() if x_t is None else x_t
    return policy.run(lambda velocity: velocity(x_t, 0.7, "a fox"))


def latents(count=4):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def base_velocity():
    from chunk_grpo_core.models.flux import predict_velocity

    features, pooled = (part.expand(4, *part.shape[1:]) for part in encode("a fox"))
    frozen = small_flux().requires_grad_(False)  # torch picks other kernels for trainable weights
    return predict_velocity(frozen, latents(), torch.full((4,), 0.7), features, pooled)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank is 0; it must be 1 or more"),
        ({"alpha": 0.0}, "lora.alpha is 0.0; it must be above 0"),
        ({"targets": "("}, r"lora.targets is '\(': not one of attention, .*regular expression"),
    ],
)
def test_bad_lora_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**settings)


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
    policy = small_policy()
    policy._encode = lambda caption: calls.append(caption) or encode(caption)
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


def test_exported_lora_is_the_trained_function_in_diffusers():
    policy = small_policy()
    shaken(policy.adapter)
    transformer = small_flux()
    state = diffusers_lora(policy.adapter.state_dict(), LORA.scale)
    transformer.load_lora_adapter(state, prefix="transformer")
    plain = small_policy()
    plain._transformer = transformer
    found = velocity_of(plain)
    assert torch.allclose(found, velocity_of(policy), atol=1e-5)
    assert not torch.allclose(found, base_velocity(), atol=1e-3)


HIDDEN, RANK = 8, 3
INPUTS = {"double_blocks.0.txt_mlp.2": 4, "single_blocks.0.linear2": 5}  # others take HIDDEN
PIECES = {
    "double_blocks.1.img_attn.qkv": {
        "transformer_blocks.1.attn.to_q": 1,
        "transformer_blocks.1.attn.to_k": 1,
        "transformer_blocks.1.attn.to_v": 1,
    },
    "double_blocks.0.txt_attn.qkv": {
        "transformer_blocks.0.attn.add_q_proj": 1,
        "transformer_blocks.0.attn.add_k_proj": 1,
        "transformer_blocks.0.attn.add_v_proj": 1,
    },
    "double_blocks.0.img_mlp.0": {"transformer_blocks.0.ff.net.0.proj": 4},
    "double_blocks.0.txt_mlp.2": {"transformer_blocks.0.ff_context.net.2": 1},
    "double_blocks.0.img_attn.proj": {"transformer_blocks.0.attn.to_out.0": 1},
    "double_blocks.0.txt_attn.proj": {"transformer_blocks.0.attn.to_add_out": 1},
    "double_blocks.0.img_mod.lin": {"transformer_blocks.0.norm1.linear": 6},
    "single_blocks.10.linear1": {
        "single_transformer_blocks.10.attn.to_q": 1,
        "single_transformer_blocks.10.attn.to_k": 1,
        "single_transformer_blocks.10.attn.to_v": 1,
        "single_transformer_blocks.10.proj_mlp": 4,
    },
    "single_blocks.0.linear2": {"single_transformer_blocks.0.proj_out": 1},
    "single_blocks.0.modulation.lin": {"single_transformer_blocks.0.norm.linear": 3},
}


def native_adapter():
    adapter = {}
    for name, pieces in PIECES.items():
        adapter[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN * INPUTS.get(name, 1))
        adapter[f"{name}.lora_B.weight"] = torch.randn(HIDDEN * sum(pieces.values()), RANK)
    return adapter


def test_a_lora_of_other_proportions_is_not_cut():
    adapter = native_adapter()
    wide = torch.randn(HIDDEN * 9, RANK)  # FLUX.2 has a wider linear1
    adapter["single_blocks.10.linear1.lora_B.weight"] = wide
    with pytest.raises(ValueError, match="only FLUX.1 LoRAs can be renamed"):
        native_to_diffusers(adapter, 1.0)


@pytest.mark.parametrize("module", PIECES)
def test_cut_rows_are_the_rows_of_the_dense_update(module):
    adapter, scale = native_adapter(), 1.75
    found = native_to_diffusers(adapter, scale)
    dense = scale * adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
    first = 0
    for piece, units in PIECES[module].items():
        a, b = (found[f"transformer.{piece}.lora_{side}.weight"] for side in "AB")
        assert torch.allclose(b @ a, dense[first : first + units * HIDDEN], atol=1e-5)
        first += units * HIDDEN
    assert first == len(dense)


def test_diffusers_names_are_exactly_the_pieces():
    names = {piece for pieces in PIECES.values() for piece in pieces}
    expected = {f"transformer.{name}.lora_{side}.weight" for name in names for side in "AB"}
    found = native_to_diffusers(native_adapter(), 1.0)
    assert set(found) == expected
    known = {name for name, _ in small_flux().named_modules()}
    assert {name.replace(".10.", ".0.").replace(".1.", ".0.") for name in names} <= known
    assert all(tensor.is_contiguous() for tensor in found.values())


@pytest.mark.parametrize("module", ["img_in", "double_blocks.0.other", "single_blocks.0.qkv"])
def test_layers_without_a_diffusers_name_are_refused(module):
    adapter = {f"{module}.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}
    with pytest.raises(ValueError, match=f"{module} is not a block layer of FLUX.1"):
        native_to_diffusers(adapter, 1.0)


def test_native_layout_round_trips():
    adapter = native_adapter()
    lora = native_lora(adapter, alpha=6.0)
    assert len(lora) == 3 * len(PIECES) and all(
        name.startswith("diffusion_model.") for name in lora
    )
    back, scale = adapter_of_native(lora)
    assert scale == 2.0 and back.keys() == adapter.keys()
    assert all(torch.equal(back[name], adapter[name]) for name in adapter)


def drop_alpha(lora):
    return {name: tensor for name, tensor in lora.items() if not name.endswith(".alpha")}


def mixed_scales(lora):
    return {**lora, next(name for name in lora if name.endswith(".alpha")): torch.tensor(1.0)}


@pytest.mark.parametrize("change", [lambda lora: {}, drop_alpha, mixed_scales])
def test_other_loras_are_refused(change):
    with pytest.raises(ValueError, match="was not made by Train LoRA"):
        adapter_of_native(change(native_lora(native_adapter(), 6.0)))


def test_saved_lora_keeps_tensors_and_metadata(tmp_path):
    lora = native_lora(native_adapter(), 6.0)
    path = save_lora(lora, tmp_path / "new" / "fox.safetensors", {"recipe": "{}"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"recipe": "{}"}
        assert all(torch.equal(file.get_tensor(name), lora[name]) for name in lora)
    assert [found.name for found in path.parent.iterdir()] == ["fox.safetensors"]


@pytest.mark.parametrize("name", ["fox", "fox.pt", "fox.safetensors.bak"])
def test_lora_files_with_other_endings_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"must end in .safetensors, got '{name}'"):
        save_lora({}, tmp_path / name, {})
