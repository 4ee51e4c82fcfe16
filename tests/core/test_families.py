"""Families of models: one file and one line of the registry make a family whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_family import FAMILY
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.configfile.reading import read_config
from chunk_grpo_core.configfile.toml import parse_toml
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.flux.config import FluxModel
from chunk_grpo_core.models.registry import FAMILIES, family_named
from chunk_grpo_core.presets import PRESETS
from chunk_grpo_core.runs.load import load_policy

TOY = {
    "model": {"type": "toy", "colours": "here.txt"},
    "prompts": {"text": ["a fox", "a large bird", "two owls"], "held_out": 1},
    "reward": {"name": "target_colour", "colour": "#2060c0"},
    "grid": {"steps": 3, "shift": "model"},
    "plan": {"chunks": "1, 1"},
    "lora": {"rank": 2},
}


@pytest.fixture(autouse=True)
def _with_a_toy(monkeypatch):
    monkeypatch.setitem(FAMILIES, FAMILY.name, FAMILY)


def read(**changes):
    return read_config({**TOY, **changes}, Path("/somewhere"), "toy")


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_registered_family_is_read_from_a_configuration():
    config = read()
    assert config.model.family is FAMILY
    assert config.model.table == FAMILY.table(width=16, colours="/somewhere/here.txt")
    assert config.settings.grid == shifted_grid(3, 2.0)  # its own, by the width
    assert read(model={"type": "toy", "width": 32}).settings.grid == shifted_grid(3, 4.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "toi"}}, "model.type is 'toi'; it must be one of tiny, flux, "),
        (
            {"model": {"type": "hidream"}},
            "model.type is hidream, which cannot be trained here",
        ),
        ({"model": {"type": "toy", "width": "wide"}}, "model.width is 'wide'; it must be a whole"),
        ({"model": {"type": "toy", "widht": 8}}, "[model] has no key widht; did you mean width?"),
        (
            {"model": {"type": "toy", "t5": "a"}},
            "t5 for this type of model; it is for flux",
        ),
        ({"prompts": {}}, "prompts.file is missing"),
        ({"reward": None}, "[reward] is missing"),
    ],
)
def test_mistakes_in_its_table_are_named(changes, message):
    with pytest.raises(ValueError) as caught:
        read(**changes)
    assert message in str(caught.value)


def test_lora_targets_take_the_layers_that_the_family_names():
    policy = load_policy(read(lora={"rank": 2, "targets": "attention"}), ["a fox"])
    layers = {name.rsplit(".", 2)[0] for name in policy.adapter.state_dict()}
    assert layers == {
        f"transformer_blocks.{index}.attn.to_{name}" for index in (0, 1) for name in "qkv"
    }
    blocks = [block for name in policy.blocks for block in policy.transformer.get_submodule(name)]
    assert [type(block).__name__ for block in blocks] == 2 * ["JointTransformerBlock"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_written_for_it(preset):
    text = run("presets", "--write", preset, "--model", "toy")
    assert parse_toml(text)["model"] == {"type": "toy", "width": 16, "colours": "colours.txt"}
    assert "# Pixels, a multiple of 2.\nwidth = 16\n" in text


def test_an_unknown_family_is_refused_with_those_there_are():
    result = CliRunner().invoke(app, ["presets", "--write", "safe-lora", "--model", "sdxl"])
    assert result.exit_code == 2
    assert "model.type is 'sdxl'; it must be one of tiny, flux, " in result.stderr


def test_it_trains_from_the_command_line_and_its_lora_is_read_again(tmp_path):
    file, folder = tmp_path / "toy.toml", tmp_path / "run"
    file.write_text(
        "iterations = 1\nprompts_per_iteration = 2\ngroup_size = 2\n"
        '[model]\ntype = "toy"\n[prompts]\ntext = ["a fox", "a large bird", "two owls", "a hat"]\n'
        'held_out = 2\n[reward]\nname = "target_colour"\n[grid]\nsteps = 3\nshift = "model"\n'
        '[plan]\nchunks = "1, 1"\n[lora]\nrank = 2\n[optimizer]\nlearning_rate = 1e-2\n'
        "[run]\npictures = 1\n"
    )
    facts = json.loads(run("train", file, "--out", folder, "--json"))
    assert facts["iterations"] == 1 and facts["ratio_error_first_update"] == 0.0
    trained = load_file(folder / "lora.safetensors")
    assert trained and all(name.startswith("transformer.") for name in trained)
    assert any(bool(tensor.any()) for name, tensor in trained.items() if "lora_B" in name)
    config = read(run={"continue_from": str(folder / "lora.safetensors")}, lora={"rank": 2})
    state = load_policy(config, ["a fox"]).adapter.state_dict()
    assert any(bool(tensor.any()) for name, tensor in state.items() if "lora_B" in name)
    assert torch.isfinite(torch.cat([tensor.flatten() for tensor in state.values()])).all()


def test_each_process_computes_on_its_own_device():
    gpu = torch.device("cuda:1")
    assert FluxModel().for_process(gpu) == FluxModel(device="cuda:1")
    assert FluxModel(device="cuda").for_process(gpu) == FluxModel(device="cuda:1")
    with pytest.raises(ValueError, match="model.device is cpu, but .*this one cuda:1.*to auto"):
        FluxModel(device="cpu").for_process(gpu)
    assert read().model.table.for_process(gpu) == read().model.table  # it has no device to set


@pytest.mark.parametrize("weights", ["fp8", "int8", "nf4", "gguf"])
def test_weights_with_numbers_beside_them_cannot_be_spread(weights):
    FluxModel(weights="bf16").check_shardable()
    with pytest.raises(ValueError, match=f"model.weights is {weights}, which cannot be spread"):
        FluxModel(weights=weights).check_shardable()


def test_every_family_says_what_a_file_needs():
    for name, family in FAMILIES.items():
        assert family.name == name and family_named(name) is family
        assert family.grid(family.table(), 4).steps == 4
