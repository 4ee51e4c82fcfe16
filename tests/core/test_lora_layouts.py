"""LoRA files of every program: the same function wherever they go, or refused by name."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_layouts import LAYOUTS, deltas, native_layers, pieces_of, xlabs
from safetensors.torch import save, save_file
from small_flux import small_policy
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.configfile.reading import read_config
from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.lora.contents import read_lora
from chunk_grpo_core.lora.continuing import start_from
from chunk_grpo_core.lora.files import convert_lora, load_lora
from chunk_grpo_core.models.registry import FAMILIES
from chunk_grpo_core.runs.load import load_policy

HIDDEN, ALPHA = 8, 1.5
OUTSIDE = {"img_in": (4, HIDDEN), "txt_in": (6, HIDDEN), "final_layer.linear": (HIDDEN, 4)}
NATIVE = native_layers(HIDDEN, alpha=ALPHA, outside=OUTSIDE)
SMALL = native_layers(2)


def dense(tensors, prefix, names):
    """The updates that a file of ours holds, under the names of its modules."""
    out = {}
    for name in names:
        a, b = (tensors[f"{prefix}{name}.lora_{side}.weight"] for side in "AB")
        alpha = float(tensors.get(f"{prefix}{name}.alpha", len(a)))
        out[name] = b @ a * (alpha / len(a))
    assert {name.split(".lora_")[0].removesuffix(".alpha") for name in tensors} == {
        prefix + name for name in names
    }
    return out


def assert_same_updates(found, wanted):
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        torch.testing.assert_close(found[name], update, rtol=0, atol=1e-6, msg=name)


# The same function, whoever wrote the file


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_converts_to_the_same_updates(layout):
    lora = LAYOUTS[layout](NATIVE)
    native, diffusers = (convert_lora(lora, to) for to in ("native", "diffusers"))
    assert_same_updates(dense(native, "diffusion_model.", NATIVE), deltas(NATIVE))
    pieces = pieces_of(NATIVE)
    assert_same_updates(dense(diffusers, "transformer.", pieces), deltas(pieces))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_trained_on_as_the_same_updates(layout):
    layers = native_layers(64, alpha=ALPHA)
    config = LoraConfig(rank=4, alpha=10.0, targets="all-linear")
    fresh = small_policy(lora=config).adapter.state_dict()
    state = start_from(LAYOUTS[layout](layers), fresh, config.scale)
    wanted = deltas(pieces_of(layers))
    assert len(wanted) >= 18
    for name in {name.split(".lora_")[0] for name in fresh}:
        a, b = (state[f"{name}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(b @ a * config.scale, wanted[name], rtol=0, atol=1e-5)


def test_the_layers_of_xlabs_are_read():
    kept, lora = xlabs(native_layers(HIDDEN, alpha=ALPHA))
    assert len(kept) == 6
    native = convert_lora(lora, "native")
    assert_same_updates(dense(native, "diffusion_model.", kept), deltas(kept))
    pieces = {name: value for name, value in pieces_of(kept).items() if name.find("proj_mlp") < 0}
    diffusers = convert_lora(lora, "diffusers")
    mlp = {name for name in diffusers if "proj_mlp" in name and name.endswith("B.weight")}
    assert all(not diffusers[name].any() for name in mlp)
    kept_names = {n: t for n, t in diffusers.items() if "proj_mlp" not in n}
    assert_same_updates(dense(kept_names, "transformer.", pieces), deltas(pieces))


def test_the_rows_of_the_last_modulation_change_places():
    a, b = torch.randn(2, HIDDEN), torch.randn(2 * HIDDEN, 2)
    name = "final_layer.adaLN_modulation.1"
    lora = {f"diffusion_model.{name}.lora_A.weight": a, f"diffusion_model.{name}.lora_B.weight": b}
    found = convert_lora(lora, "diffusers", "flux")
    shift, scale = (b @ a).chunk(2)
    update = dense(found, "transformer.", ["norm_out.linear"])["norm_out.linear"]
    torch.testing.assert_close(update, torch.cat([scale, shift]))
    back = convert_lora(found, "native", "flux")
    assert all(torch.equal(back[key], tensor) for key, tensor in lora.items())


def test_names_of_other_architectures_stay_native():
    lora = {
        f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight": torch.ones(2, 2)
        for side in "AB"
    }
    assert len(convert_lora(lora, "native")) == 3
    with pytest.raises(ValueError, match="1 of the 1 layers .* they look like Wan"):
        convert_lora(lora, "diffusers")


# Left out, and said so


def test_layers_of_text_encoders_are_counted_and_left_out(caplog):
    contents = read_lora(LAYOUTS["kohya with a text encoder"](NATIVE))
    assert contents.text_encoder == 1 and len(contents.layers) == len(NATIVE)
    assert "1 layers of text encoders in this LoRA (lora_te1_" in caplog.text
    assert f"its {len(NATIVE)} layers of the image model are used" in caplog.text


# The scale of peft


def peft_file(folder, config):
    layers = pieces_of(NATIVE)
    plain = {name: (a, b, float(len(a))) for name, (a, b, _) in layers.items()}
    tensors = LAYOUTS["peft"](NATIVE) | {
        f"base_model.model.{name}.lora_B.weight": b for name, (_, b, _) in plain.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter_model.safetensors", plain


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 5 / 3), (True, 5 / 3**0.5)])
def test_the_scale_beside_a_file_of_peft_is_read(tmp_path, use_rslora, scale):
    config = {"r": 3, "lora_alpha": 5, "use_rslora": use_rslora}
    path, plain = peft_file(tmp_path, config)
    found = convert_lora(load_lora(path)[0], "diffusers")
    wanted = {name: b @ a * scale for name, (a, b, _) in plain.items()}
    assert_same_updates(dense(found, "transformer.", plain), wanted)


def test_a_file_of_peft_without_its_scale_is_taken_as_1_with_a_warning(tmp_path, caplog):
    path, plain = peft_file(tmp_path, None)
    found = convert_lora(load_lora(path)[0], "diffusers")
    assert_same_updates(dense(found, "transformer.", plain), deltas(plain))
    assert "no adapter_config.json beside it; its scale is taken as 1" in caplog.text


BAD_CONFIGS = [
    "[]",
    "null",
    "3",
    '"x"',
    "{",
    "[" * 100_000,
    "{}",
    '{"r": 3}',
    '{"r": 3, "lora_alpha": null}',
    '{"r": "x", "lora_alpha": 5}',
    '{"r": 0, "lora_alpha": 5}',
    '{"r": 4, "lora_alpha": 5}',
    '{"r": 3, "lora_alpha": NaN}',
    '{"r": 3, "lora_alpha": 0}',
    '{"r": 3, "lora_alpha": true}',
    '{"r": 3, "lora_alpha": 1' + "0" * 400 + "}",
    '{"r": 3, "lora_alpha": "5"}',
    '{"r": 3, "lora_alpha": 5, "alpha_pattern": {"x": 1}}',
]


@pytest.mark.parametrize("text", BAD_CONFIGS, ids=lambda text: text[:40])
@pytest.mark.parametrize("where", ["header", "beside"])
def test_configurations_of_peft_that_make_no_sense_are_refused(tmp_path, text, where):
    path, _ = peft_file(tmp_path, None)
    if where == "beside":
        (tmp_path / "adapter_config.json").write_text(text)
    else:
        header = text.replace('"r"', '"transformer.r"').replace('"lora_', '"transformer.lora_')
        header = header.replace('"alpha_', '"transformer.alpha_')
        save_file(LAYOUTS["diffusers"](NATIVE), path, metadata={"lora_adapter_metadata": header})
    with pytest.raises(ValueError, match="adapter_model.safetensors: "):
        load_lora(path)


# Refused by name


def changed(name, value):
    """The LoRA with one tensor more, or another one."""
    return LAYOUTS["native"](NATIVE) | {f"diffusion_model.{name}": value}


QKV = "double_blocks.0.img_attn.qkv"
A, B = f"{QKV}.lora_A.weight", f"{QKV}.lora_B.weight"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (f"{QKV}.dora_scale", torch.ones(24), "DoRA"),
        (f"{QKV}.lora_magnitude_vector", torch.ones(24), "DoRA"),
        (f"{QKV}.lora_magnitude_vector.default.weight", torch.ones(24), "DoRA"),
        (f"{QKV}.lora_B.bias", torch.ones(24), "a trained bias"),
        (f"{QKV}.lora_B.default.bias", torch.ones(24), "a trained bias"),
        (f"{QKV}.diff_b", torch.zeros(24), "a trained bias"),
        (f"{QKV}.hada_w1_a", torch.ones(3, 3), "LoHa"),
        (f"{QKV}.lokr_w1", torch.ones(3, 3), "LoKr"),
        (f"{QKV}.oft_blocks", torch.ones(3, 3), "OFT"),
        (f"{QKV}.lora_mid.weight", torch.ones(3, 3), "a middle factor"),
        (f"{QKV}.diff", torch.ones(24, 8), "whole changed weights"),
        (f"{QKV}.weight", torch.ones(24, 8), "a checkpoint, and not a LoRA"),
        ("sparkle", torch.ones(2), "sparkle, which is no part of a plain LoRA"),
        ("a" * 5000, torch.ones(2), r"a tensor called 'diffusion_model.a{44}' \(5016 characters"),
        ("\x1b[2J", torch.ones(2), r"called 'diffusion_model.\\x1b\[2J'"),
        (A, torch.full((3, 8), float("nan")), "qkv.lora_A.weight holds NaN .*24 of 24"),
        (B, torch.full((24, 3), float("inf")), "qkv.lora_B.weight holds NaN or infinity"),
        (A, torch.ones(3, 8, dtype=torch.int8), "qkv.lora_A.weight holds numbers of type int8"),
        (A, torch.ones(3, 8, dtype=torch.int64), "type int64"),
        (A, torch.ones(3, 8, dtype=torch.bool), "type bool"),
        (A, torch.ones(0, 8), r"shape \(0, 8\); it must be a matrix, with a rank of 1 or more"),
        (A, torch.ones(8), r"shape \(8,\)"),
        (A, torch.ones(3, 8, 3, 3), "a convolution cannot be read"),
        (A, torch.ones(4, 8), r"\(4, 8\) and \(24, 3\); they must be"),
        (f"{QKV}.alpha", torch.tensor(float("nan")), "qkv.alpha is nan"),
        (f"{QKV}.alpha", torch.tensor(float("inf")), "qkv.alpha is inf"),
        (f"{QKV}.alpha", torch.tensor(0.0), "qkv.alpha is 0; it must be a finite number other"),
        (f"{QKV}.alpha", torch.ones(2), "it must be one number"),
        (f"{QKV}.alpha", torch.tensor(True), "type bool; it must be one number"),
    ],
)
def test_what_is_no_part_of_a_sound_lora_is_refused_by_name(name, value, message):
    lora = changed(name, value)
    fresh = small_policy().adapter.state_dict()
    for use in (
        lambda: convert_lora(lora, "native"),
        lambda: convert_lora(lora, "diffusers"),
        lambda: start_from(lora, fresh, 1.0),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize(("a", "b"), [(1e30, 1e9), (1e-30, 3.4e38), (0.3, 1e30)])
def test_updates_beyond_all_weights_are_refused(a, b):
    lora = changed(A, torch.full((3, 8), a)) | {f"diffusion_model.{B}": torch.full((24, 3), b)}
    lora[f"diffusion_model.{QKV}.alpha"] = torch.tensor(6.0)
    with pytest.raises(ValueError, match=r"double_blocks.0.img_attn.qkv \(alpha 6, rank 3\)"):
        read_lora(lora)


def test_whole_numbers_are_an_alpha():
    lora = changed(f"{QKV}.alpha", torch.tensor(3))
    assert read_lora(lora).layers[QKV].alpha == 3.0


def test_a_lora_of_zeros_is_refused():
    lora = {name: torch.zeros_like(tensor) for name, tensor in LAYOUTS["diffusers"](NATIVE).items()}
    with pytest.raises(ValueError, match="all numbers of this LoRA are 0"):
        read_lora(lora)


def test_ranks_that_are_zero_in_the_file_start_fresh():
    layers = native_layers(64)
    for a, b, _ in layers.values():
        a[1], b[:, 1] = 0.0, 0.0
    fresh = small_policy(lora=LoraConfig(rank=4, targets="all-linear")).adapter.state_dict()
    state = start_from(LAYOUTS["diffusers"](layers), fresh, 1.0)
    name = "transformer_blocks.0.attn.to_q.lora_A.weight"
    assert torch.equal(state[name][1], fresh[name][1]) and bool(fresh[name][1].any())
    assert not torch.equal(state[name][0], fresh[name][0])


def test_damaged_names_are_refused_with_examples():
    native = LAYOUTS["native"](native_layers(HIDDEN, double=2))
    lora = {name.replace("blocks.1.", "blocks.1_"): tensor for name, tensor in native.items()}
    with pytest.raises(ValueError, match=r"10 of the 23 layers .*double_blocks.1_img_attn.proj, "):
        convert_lora(lora, "native")
    with pytest.raises(ValueError, match="10 of the 23 layers .* and 7 more"):
        convert_lora(lora, "diffusers")
    with pytest.raises(ValueError, match=r"10 of the 23 layers .*: double_blocks.1_img_attn.proj"):
        start_from(lora, small_policy().adapter.state_dict(), 1.0)


def test_another_architecture_is_named():
    lora = {
        f"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_{letter}.lora_{side}.weight":
        torch.ones(2, 2) for letter in "qkv" for side in ("down", "up")
    }  # fmt: skip
    with pytest.raises(ValueError, match="3 of the 3 layers.*The LoRA looks like one for SDXL or"):
        start_from(lora, small_policy().adapter.state_dict(), 1.0)


def test_one_layer_under_two_names_is_refused():
    layers = native_layers(HIDDEN)
    lora = LAYOUTS["native"](layers) | LAYOUTS["kohya"](layers)
    with pytest.raises(ValueError, match="twice, under two spellings"):
        convert_lora(lora, "native")
    lora = LAYOUTS["diffusers"](NATIVE) | LAYOUTS["peft"](NATIVE)
    with pytest.raises(ValueError, match="twice, as transformer.*and as base_model.model"):
        convert_lora(lora, "native")


# Files that are none


def bad_files(folder):
    good = save(LAYOUTS["native"](NATIVE))
    contents = {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "header only": good[:100],
        "huge header": (2**62).to_bytes(8, "little") + b"{}",
        "text": b"not a LoRA",
        "pickle": pickle.dumps({"a": 1}),
    }
    for name, data in contents.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    return [*contents, "folder", "pipe", "gone"]


def test_files_that_are_no_loras_are_named_before_the_model_is_loaded(tmp_path, monkeypatch):
    def load(*given, **options):
        raise AssertionError("the model was loaded")

    tiny = {"model": {"type": "tiny"}, "grid": {"steps": 3, "shift": 3.0}}
    tiny["plan"] = {"chunks": "1, 1"}
    monkeypatch.setitem(FAMILIES, "tiny", replace(FAMILIES["tiny"], load=load))
    for name in bad_files(tmp_path):
        path = tmp_path / f"{name}.safetensors"
        start = {"run": {"continue_from": str(path)}}
        for table, lora in (({}, path), (start, None)):
            config = read_config({**tiny, **table}, tmp_path, "tiny")
            with pytest.raises((ValueError, FileNotFoundError)) as error:
                load_policy(config, ["a red circle"], lora=lora)
            assert str(path) in str(error.value)


def test_the_command_names_file_and_tensor_and_writes_nothing(tmp_path):
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(changed(A, torch.full((3, 8), float("nan"))), source)
    words = ["convert", str(source), str(target), "--to", "native"]
    result = CliRunner().invoke(app, words, terminal_width=200)
    text = result.output.replace("\n", "")
    assert result.exit_code == 2 and f"{source}: diffusion_model.{A} holds NaN" in text
    assert not target.exists()


# Whatever a file holds


_NUMBERS = st.sampled_from([1.0, 0.0, -2.5, 1e-30, 3e38, float("inf"), float("nan")])
_KINDS = st.sampled_from(
    [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.int64,
        torch.bool,
    ]
)
_TENSORS = st.builds(
    lambda shape, number, kind: torch.full(shape, number, dtype=torch.float64).to(kind),
    st.lists(st.integers(0, 5), max_size=4),
    _NUMBERS,
    _KINDS,
)
_MODULES = st.sampled_from(
    [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.img_attn.proj",
        "transformer_blocks.0.attn.to_q",
        "single_blocks_0_linear1",
        "final_layer.adaLN_modulation.1",
        "norm_out.linear",
        "blocks.0.self_attn.q",
        "",
    ]
)
_NAMES = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "diffusion_model.", "transformer.", "lora_unet_", "base_model.model."]),
    _MODULES,
    st.sampled_from(
        [".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".alpha"]
        + [".lora_B.bias", ".dora_scale", ".weight", ".lora_A.x.weight", "_lora.up.weight"]
    ),
) | st.text(max_size=12)


@given(
    st.dictionaries(_NAMES, _TENSORS, max_size=6),
    st.sampled_from(["native", "diffusers"]),
)
@settings(max_examples=120)
def test_any_file_is_refused_or_becomes_finite_layers(tensors, to):
    try:
        found = convert_lora(tensors, to)
    except ValueError as error:
        assert str(error)
        return
    assert found and all(bool(tensor.isfinite().all()) for tensor in found.values())


@pytest.mark.slow
@given(
    layout=st.sampled_from(["native", "diffusers", "kohya", "peft"]),
    changes=st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 255)), max_size=3),
    length=st.none() | st.integers(0, 2**32),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_lora_of_finite_numbers_or_refused_by_name(
    tmp_path, layout, changes, length
):
    header = {"lora_adapter_metadata": '{"transformer.r": 3, "transformer.lora_alpha": 2}'}
    data = bytearray(save(LAYOUTS[layout](SMALL), header if layout == "diffusers" else None))
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(data if length is None else data[: length % len(data)])
    try:
        tensors, _ = load_lora(path)
    except (ValueError, FileNotFoundError) as error:
        assert str(error).startswith(str(path))
        return
    try:
        found = convert_lora(tensors, "native")
    except ValueError as error:
        assert 0 < len(str(error)) < 1500
        return
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
