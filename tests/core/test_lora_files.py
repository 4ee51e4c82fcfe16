"""LoRA files: two layouts, exact conversion, training on from a file."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_flux import (
    LORA,
    base_velocity,
    shaken,
    small_flux,
    small_policy,
    velocity_of,
)

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.lora.continuing import start_from
from chunk_grpo_core.lora.files import (
    convert_lora,
    diffusers_lora,
    load_lora,
    native_lora,
    save_lora,
)

A, B = ".lora_A.weight", ".lora_B.weight"
HIDDEN, RANK = 8, 3
INPUTS = {"double_blocks.0.txt_mlp.2": 4, "single_blocks.0.linear2": 5}  # others take HIDDEN
#: Native module -> its pieces in the order of their rows, with their rows in units of HIDDEN.
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


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def native_adapter(rank=RANK):
    adapter, source = {}, generator()
    for name, pieces in PIECES.items():
        inputs, outputs = HIDDEN * INPUTS.get(name, 1), HIDDEN * sum(pieces.values())
        adapter[name + A] = torch.randn(rank, inputs, generator=source)
        adapter[name + B] = torch.randn(outputs, rank, generator=source)
    return adapter


def diffusers_file(ranks=(2, 3, 4), left_out=()):
    """Every piece has an A of its own, and a rank that differs from its neighbour's."""
    lora, source = {}, generator(1)
    for module, pieces in PIECES.items():
        for number, (piece, units) in enumerate(pieces.items()):
            if piece.rpartition(".")[2] in left_out:
                continue
            rank, inputs = ranks[number % len(ranks)], HIDDEN * INPUTS.get(module, 1)
            lora[f"transformer.{piece}{A}"] = torch.randn(rank, inputs, generator=source)
            lora[f"transformer.{piece}{B}"] = torch.randn(HIDDEN * units, rank, generator=source)
    return lora


def update(lora, name):
    """The dense update scale B A of one module, as loaders compute it."""
    a, b = (lora[name + side].double() for side in (A, B))
    return b @ a * (float(lora.get(f"{name}.alpha", len(a))) / len(a))


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


# The two layouts


@pytest.mark.parametrize("rs", [False, True])
def test_native_files_carry_the_scale_as_alpha(rs):
    config, adapter = LoraConfig(rank=RANK, alpha=6.0, rs=rs), native_adapter()
    lora = native_lora(adapter, config.file_alpha)
    assert len(lora) == 3 * len(PIECES)
    for module in PIECES:
        name = f"diffusion_model.{module}"
        assert float(lora[f"{name}.alpha"]) / RANK == pytest.approx(config.scale, rel=1e-7)
        assert_same(
            {side: lora[name + side] for side in (A, B)},
            {side: adapter[module + side] for side in (A, B)},
        )


def test_tensors_of_a_file_share_no_memory():
    lora = convert_lora(native_lora(native_adapter(), RANK), "diffusers")
    assert len({tensor.data_ptr() for tensor in lora.values()}) == len(lora)
    assert all(tensor.is_contiguous() for tensor in lora.values())


@pytest.mark.parametrize("module", PIECES)
def test_cut_rows_are_the_rows_of_the_dense_update(module):
    native = native_lora(native_adapter(), alpha=5.25)
    found = convert_lora(native, "diffusers")
    dense = update(native, f"diffusion_model.{module}").split(
        [units * HIDDEN for units in PIECES[module].values()]
    )
    for piece, rows in zip(PIECES[module], dense, strict=True):
        assert f"transformer.{piece}.alpha" not in found
        torch.testing.assert_close(update(found, f"transformer.{piece}"), rows, rtol=0, atol=1e-5)


def test_diffusers_names_are_exactly_the_pieces():
    names = {piece for pieces in PIECES.values() for piece in pieces}
    found = convert_lora(native_lora(native_adapter(), 1.0), "diffusers")
    assert set(found) == {f"transformer.{name}{side}" for name in names for side in (A, B)}
    known = {name for name, _ in small_flux().named_modules()}
    assert {name.replace(".10.", ".0.").replace(".1.", ".0.") for name in names} <= known


@pytest.mark.parametrize("left_out", [(), ("to_k", "proj_mlp")])
@pytest.mark.parametrize("alphas", [{}, {"to_q": 7.0, "to_k": 0.5}])
@pytest.mark.parametrize("module", PIECES)
def test_fused_rows_are_the_dense_updates_of_the_pieces(module, alphas, left_out):
    lora = diffusers_file(left_out=left_out)
    for name in [name for name in lora if name.endswith(A)]:
        if (leaf := name.removesuffix(A).rpartition(".")[2]) in alphas:
            lora[f"{name.removesuffix(A)}.alpha"] = torch.tensor(alphas[leaf])
    found = convert_lora(lora, "native")
    parts = [
        update(lora, f"transformer.{piece}")
        if f"transformer.{piece}{A}" in lora
        else torch.zeros(units * HIDDEN, HIDDEN * INPUTS.get(module, 1)).double()
        for piece, units in PIECES[module].items()
    ]
    dense = update(found, f"diffusion_model.{module}")
    torch.testing.assert_close(dense, torch.cat(parts), rtol=0, atol=1e-5)


# Round trips


def test_a_native_file_of_scale_one_comes_back_bit_for_bit():
    lora = native_lora(native_adapter(), alpha=RANK)
    assert_same(convert_lora(convert_lora(lora, "diffusers"), "native"), lora)


@pytest.mark.parametrize("alpha", [6.0, 5.25, RANK * math.sqrt(RANK)])
def test_a_native_file_of_another_scale_comes_back_with_the_scale_in_b(alpha):
    lora = native_lora(native_adapter(), alpha)
    back = convert_lora(convert_lora(lora, "diffusers"), "native")
    for module in PIECES:
        name = f"diffusion_model.{module}"
        assert torch.equal(back[name + A], lora[name + A])
        assert float(back[f"{name}.alpha"]) == RANK
        exact = lora[name + B].double() * (alpha / RANK)
        assert float(((back[name + B] - exact) / exact).abs().max()) <= 2**-23  # 1 ulp of float32


@pytest.mark.parametrize("left_out", [(), ("to_k", "proj_mlp"), ("to_q", "to_v")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_diffusers_file_comes_back_bit_for_bit(left_out, dtype):
    lora = {name: t.to(dtype) for name, t in diffusers_file(left_out=left_out).items()}
    assert_same(convert_lora(convert_lora(lora, "native"), "diffusers"), lora)


def test_an_untrained_lora_keeps_all_its_pieces():
    adapter = {n: t * (0 if n.endswith(B) else 1) for n, t in native_adapter().items()}
    lora = native_lora(adapter, RANK)
    assert len(convert_lora(lora, "diffusers")) == 2 * sum(map(len, PIECES.values()))
    assert_same(convert_lora(convert_lora(lora, "diffusers"), "native"), lora)


def test_a_file_in_the_layout_wanted_gets_standard_names():
    lora = native_lora(native_adapter(), 5.25)
    other = {
        name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): tensor
        for name, tensor in lora.items()
    }
    assert_same(convert_lora(other, "native"), lora)


def test_half_precision_is_kept_unless_a_scale_must_be_folded():
    lora = {n: t.bfloat16() for n, t in native_lora(native_adapter(), RANK).items()}
    assert {t.dtype for t in convert_lora(lora, "diffusers").values()} == {torch.bfloat16}
    lora = {n: t * 2 if n.endswith("alpha") else t for n, t in lora.items()}
    folded = convert_lora(lora, "diffusers")
    assert {folded[n].dtype for n in folded if n.endswith(B)} == {torch.float32}


# What is a LoRA of no known model, or of a wrong shape


def pair(module, inputs=HIDDEN, outputs=HIDDEN, prefix="diffusion_model."):
    a, b = torch.ones(2, inputs), torch.ones(outputs, 2)
    return {f"{prefix}{module}{A}": a, f"{prefix}{module}{B}": b}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            pair("blocks.0.self_attn.q"),
            "1 of the 1 layers .* not layers of FLUX.1 or .*: blocks.0.*; they look like Wan",
        ),
        (
            pair("double_blocks.19.img_attn.proj"),
            "layers of FLUX.1 or .*: double_blocks.19",
        ),
        (pair("single_blocks.38.linear1", 8, 56), "maps 8 to 56 numbers, which is not FLUX.2's"),
        (pair("single_blocks.48.linear1", 8, 72), "not layers of FLUX.1 or .*: single_blocks.48"),
        (pair("single_blocks.0.linear1", 8, 80), "maps 8 to 80 numbers, which is not FLUX.1's"),
        (pair("joint_blocks.0.x_block.attn.qkv"), "maps 8 to 8 numbers, which is not Stable Diff"),
        (pair("double_blocks.0.img_attn.qkv", 8, 25), "maps 8 to 25 numbers"),
    ],
)
def test_other_native_loras_are_not_renamed_for_diffusers(lora, message):
    with pytest.raises(ValueError, match=message):
        convert_lora(lora, "diffusers")
    assert len(convert_lora(lora, "native")) == 3


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            ["joint_transformer_blocks.0.attn.to_q"],
            "they look like AuraFlow. Names in both",
        ),
        (["transformer_blocks.60.attn.to_q"], "or HiDream-I1: transformer_blocks.60"),
        (["transformer_blocks.0.attn2.add_q_proj"], "or HiDream-I1: transformer_blocks.0"),
    ],
)
def test_other_diffusers_loras_are_not_renamed_for_comfyui(modules, message):
    lora = {}
    for module in modules:
        lora |= pair(module, prefix="transformer.")
    with pytest.raises(ValueError, match=message):
        convert_lora(lora, "native")


def test_pieces_of_different_widths_are_not_fused():
    lora = pair("transformer_blocks.0.attn.to_q", prefix="transformer.")
    lora |= pair("transformer_blocks.0.attn.to_k", 16, 16, prefix="transformer.")
    with pytest.raises(ValueError, match="pieces of double_blocks.0.img_attn.qkv have different"):
        convert_lora(lora, "native", "flux")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lora: {}, "this LoRA holds nothing"),
        (
            lambda lora: pair("x", prefix="lora_unet_"),
            "1 of the 1 layers .* FLUX.1 or .*: x",
        ),
        (lambda lora: pair("x", prefix="text_encoder."), "1 layers of text encoders and none of"),
        (lambda lora: lora | diffusers_file(), "img_attn.proj.* twice"),
        (
            lambda lora: lora | {"diffusion_model.x.diff_b": torch.ones(1)},
            "a trained bias .*diff_b",
        ),
        (lambda lora: lora | {"diffusion_model.x.dora_scale": torch.ones(1)}, "DoRA.*x.dora_scale"),
        (
            lambda lora: {n: t for n, t in lora.items() if "_A." not in n},
            "only diffusion_model.double.*lora_B.weight, .*alpha of double",
        ),
        (lambda lora: {n: t.T if "_A." in n else t for n, t in lora.items()}, r"\(8, 3\) and \("),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        convert_lora(change(native_lora(native_adapter(), 6.0)), "native")


# Files


def test_saved_lora_keeps_tensors_and_metadata(tmp_path):
    lora = native_lora(native_adapter(), 6.0)
    path = save_lora(lora, tmp_path / "new" / "fox.safetensors", {"recipe": "{}"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"recipe": "{}"}
    assert [found.name for found in path.parent.iterdir()] == ["fox.safetensors"]
    tensors, metadata = load_lora(path)
    assert_same(tensors, lora)
    assert metadata == {"recipe": "{}"}


@pytest.mark.parametrize("name", ["fox", "fox.pt", "fox.safetensors.bak"])
def test_lora_files_with_other_endings_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"must end in .safetensors, got '{name}'"):
        save_lora({}, tmp_path / name, {})


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.safetensors does not exist"):
        load_lora(tmp_path / "gone.safetensors")
    (tmp_path / "text.safetensors").write_text("not a LoRA")
    with pytest.raises(ValueError, match=r"text.safetensors is not a whole safetensors file"):
        load_lora(tmp_path / "text.safetensors")


def invoke(*words):
    from typer.testing import CliRunner

    from chunk_grpo_core.cli.app import app

    return CliRunner().invoke(app, ["convert", *map(str, words)], terminal_width=200)


def test_the_command_converts_there_and_back_and_keeps_metadata(tmp_path):
    native, middle, back = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    lora = native_lora(native_adapter(), RANK)
    save_lora(lora, native, {"base_model": "FLUX.1", "format": "pt"})
    for source, target, layout in (
        (native, middle, "diffusers"),
        (middle, back, "native"),
    ):
        result = invoke(source, target, "--to", layout)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(target)
    assert all(name.startswith("transformer.") for name in load_lora(middle)[0])
    tensors, metadata = load_lora(back)
    assert_same(tensors, lora)
    assert metadata == {"base_model": "FLUX.1", "format": "pt"}


def test_the_command_refuses_what_it_cannot_convert(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(pair("blocks.0.self_attn.q"), source)
    for words, message in (
        ((tmp_path / "gone.safetensors", target, "--to", "native"), "does not exist"),
        ((source, source, "--to", "native"), "exists already"),
        ((source, target, "--to", "diffusers"), "not layers of FLUX.1"),
        ((source, target, "--to", "kohya"), "kohya"),
        ((source, target), "--to"),
    ):
        result = invoke(*words)
        assert result.exit_code == 2 and message in result.output.replace("\n", " "), result.output
    assert not target.exists()
    assert invoke(source, target, "--to", "native").exit_code == 0  # any model stays native


# What diffusers loads is what was trained


@pytest.mark.parametrize("rs", [False, True])
@pytest.mark.parametrize("through_native", [False, True])
def test_a_file_is_the_trained_function_in_diffusers(rs, through_native, tmp_path):
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    config = LoraConfig(rank=4, alpha=3.0, rs=rs)
    policy = small_policy(lora=config)
    shaken(policy.adapter)
    lora = diffusers_lora(policy.adapter.state_dict(), config.file_alpha)
    if through_native:
        lora = convert_lora(convert_lora(lora, "native"), "diffusers")
    save_lora(lora, tmp_path / "fox.safetensors", {"base_model": "small"})
    plain = small_policy()
    plain._transformer = transformer = small_flux()
    others = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipeline = FluxPipeline(**dict.fromkeys(others), transformer=transformer)
    pipeline.load_lora_weights(tmp_path, weight_name="fox.safetensors")
    found, wanted = velocity_of(plain), velocity_of(policy)
    assert float((found - wanted).abs().max()) <= 1e-5
    assert not torch.allclose(found, base_velocity(), atol=1e-3)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_scale_in_a_header_of_diffusers_is_read(use_rslora, tmp_path):
    import peft
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    transformer = small_flux()
    transformer.requires_grad_(False)
    transformer.add_adapter(
        peft.LoraConfig(
            r=4,
            lora_alpha=6,
            use_rslora=use_rslora,
            init_lora_weights=False,
            target_modules=["to_q", "to_k", "to_v", "proj_mlp"],
        )
    )
    FluxPipeline.save_lora_weights(
        tmp_path,
        peft.get_peft_model_state_dict(transformer),
        weight_name="theirs.safetensors",
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    trained = small_policy()
    trained._transformer = transformer
    tensors, metadata = load_lora(tmp_path / "theirs.safetensors")
    assert "lora_adapter_metadata" not in metadata  # the scale is not applied twice
    policy = small_policy(lora=LoraConfig(rank=4, alpha=1.0))
    policy.adapter.load_state_dict(start_from(tensors, policy.adapter.state_dict(), 0.25))
    assert float((velocity_of(policy) - velocity_of(trained)).abs().max()) <= 1e-5
    assert not torch.allclose(velocity_of(policy), base_velocity(), atol=1e-3)


@pytest.mark.parametrize(
    "header",
    [
        {"transformer.r": 2, "transformer.lora_alpha": 2, "transformer.alpha_pattern": {"x": 1}},
        {"text_encoder.r": 2},
    ],
)
def test_headers_without_one_scale_are_refused(header, tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file(diffusers_file(), path, metadata={"lora_adapter_metadata": json.dumps(header)})
    with pytest.raises(ValueError, match="theirs.safetensors: .*does not give one alpha for all"):
        load_lora(path)


# Training on


def continued(lora, config):
    policy = small_policy(lora=config)
    fresh = policy.adapter.state_dict()
    policy.adapter.load_state_dict(start_from(lora, fresh, config.scale))
    return policy


@pytest.mark.parametrize(
    "config",
    [
        LORA,
        LoraConfig(rank=4, alpha=4.0, rs=True),
        LoraConfig(rank=9, alpha=1.0),
        LoraConfig(rank=7, alpha=3.0, rs=True, targets="all-linear"),
    ],
)
def test_a_continued_lora_is_the_function_of_the_file(config):
    first = small_policy()
    shaken(first.adapter)
    lora = diffusers_lora(first.adapter.state_dict(), LORA.file_alpha)
    policy = continued(lora, config)
    assert float((velocity_of(policy) - velocity_of(first)).abs().max()) <= 1e-5


def test_the_same_settings_continue_bit_for_bit():
    first = shaken(small_policy(lora=LoraConfig(rank=4, alpha=4.0)).adapter)
    lora = diffusers_lora(first.state_dict(), alpha=4.0)
    assert_same(
        continued(lora, LoraConfig(rank=4, alpha=4.0)).adapter.state_dict(), lora_names(lora)
    )


def lora_names(lora):
    return {name.removeprefix("transformer."): tensor for name, tensor in lora.items()}


def test_a_native_file_continues_on_diffusers_and_back():
    first = small_policy()
    shaken(first.adapter)
    native = convert_lora(diffusers_lora(first.adapter.state_dict(), LORA.file_alpha), "native")
    policy = continued(native, LoraConfig(rank=4, alpha=6.0))  # cut again, so rank 4 is enough
    assert float((velocity_of(policy) - velocity_of(first)).abs().max()) <= 1e-5


def test_ranks_beyond_those_of_the_file_can_learn():
    lora = diffusers_lora(shaken(small_policy().adapter).state_dict(), LORA.file_alpha)
    policy = continued(lora, LoraConfig(rank=6, alpha=6.0))
    policy.run(lambda velocity: velocity(torch.randn(2, 4, 4, 4), 0.7, "a fox")).sum().backward()
    names = policy.adapter.state_dict()
    moved = [
        parameter.grad.abs().amax(dim=0) > 0
        for name, parameter in zip(names, policy.adapter.parameters(), strict=True)
        if name.endswith(B)
    ]
    assert sum(columns[4:].all() for columns in moved) >= 10
    assert all(columns[:4].all() == columns[4:].all() for columns in moved)


def test_layers_that_the_file_lacks_start_fresh():
    fresh = small_policy().adapter.state_dict()
    name = "transformer_blocks.0.attn.to_q"
    lora = pair(name, 64, 64, prefix="transformer.")
    state = start_from(lora, fresh, scale=1.0)
    changed = {key for key in fresh if not torch.equal(state[key], fresh[key])}
    assert changed == {name + A, name + B}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            pair("proj_out", 64, 4, "transformer."),
            "1 of the 1 layers of this LoRA are none of the adapter's: proj_out; the adapter has",
        ),
        (
            pair("transformer_blocks.0.norm1.linear", 64, 384, "transformer.")
            | pair("transformer_blocks.0.attn.to_q", 64, 64, "transformer."),
            "1 of the 2 layers .*: transformer_blocks.0.norm1.linear; .* lora.targets that take",
        ),
        (
            pair("transformer_blocks.0.attn.to_q", 32, 32, "transformer."),
            "transformer_blocks.0.attn.to_q maps 32 to 32 numbers .* and 64 to 64 in this model",
        ),
        (
            pair("transformer_blocks.1.attn.to_q", 64, 64, "transformer."),
            "transformer_blocks.1.attn.to_q; the adapter has, for example, single_transformer",
        ),
    ],
)
def test_a_lora_that_does_not_fit_is_not_continued(lora, message):
    with pytest.raises(ValueError, match=message):
        start_from(lora, small_policy().adapter.state_dict(), LORA.scale)


def test_a_higher_rank_is_not_continued():
    lora = diffusers_lora(small_policy(lora=LoraConfig(rank=9)).adapter.state_dict(), 1.0)
    with pytest.raises(
        ValueError, match="lora.rank is 4, and this LoRA needs 9 .*; set rank to 9 or mo"
    ):
        start_from(lora, small_policy().adapter.state_dict(), LORA.scale)
    with pytest.raises(ValueError, match="needs 11 .where this model fuses .* ranks add up"):
        start_from(diffusers_file(ranks=(2, 3, 4)), native_adapter(4), 1.0)
