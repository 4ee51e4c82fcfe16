"""LoRAs of the families beside FLUX.1: the same updates in both layouts, whoever wrote the file.

The updates of every layer are compared as dense matrices, and what they are under native names is
told by ``native_names``, which does not know the tables of the library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lora_layouts import deltas, numbered, pieces_of
from native_names import NATIVE
from pipeline_folders import skip_where_diffusers_is_old, small_pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.lora.adapter import LoraConfig, PeftAdapter
from chunk_grpo_core.lora.contents import read_lora
from chunk_grpo_core.lora.continuing import start_from
from chunk_grpo_core.lora.files import convert_lora
from chunk_grpo_core.models.registry import FAMILIES

FAMILIES_WITH_NAMES = ["z-image", "sd3", "flux2-klein", "qwen-image", "krea2"]
Layers = dict[str, tuple[Tensor, Tensor, float]]
"""Module -> A, B, alpha."""


def random_layers(shapes: Mapping[str, tuple[int, int]], alpha: float = 3.0) -> Layers:
    """Module -> (outputs, inputs) given."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: (
            torch.randn(2, inputs, generator=generator) / 4,
            torch.randn(outputs, 2, generator=generator) / 4,
            alpha,
        )
        for name, (outputs, inputs) in shapes.items()
    }


@dataclass(frozen=True)
class Names:
    """The linear layers of a small model."""

    family: str
    transformer: Any
    diffusers: Layers
    """A LoRA on all of them, diffusers' names."""
    native: Layers
    """Another one, native names."""

    def dense(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The updates of ``diffusers``: under its names, and natively."""
        updates = {name: b @ a * (alpha / len(a)) for name, (a, b, alpha) in self.diffusers.items()}
        state = {n: torch.zeros_like(t) for n, t in self.transformer.state_dict().items()}
        state |= {f"{name}.weight": update for name, update in updates.items()}
        return updates, natively(self.family, state)


def natively(family: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a transformer -> what is not zero, by native modules."""
    return {
        name.removeprefix("model.diffusion_model.").removesuffix(".weight"): tensor
        for name, tensor in NATIVE[family](dict(state)).items()
        if bool(tensor.any())
    }


@pytest.fixture(scope="module", params=FAMILIES_WITH_NAMES)
def names(request) -> Names:
    skip_where_diffusers_is_old(request.param)
    transformer = small_pipeline(request.param).transformer
    shapes = {
        name: tuple(layer.weight.shape)
        for name, layer in transformer.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    ones = {n: torch.zeros_like(t) for n, t in transformer.state_dict().items()}
    ones |= {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    native = {name: tuple(t.shape) for name, t in natively(request.param, ones).items()}
    return Names(request.param, transformer, random_layers(shapes), random_layers(native))


def written(
    layers: Layers, prefix: str, *, flat: bool = False, down: str = "lora_A", up: str = "lora_B",
    alpha: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """A file of some program; without alphas the scale is in B."""
    out: dict[str, Tensor] = {}
    for module, (a, b, number) in layers.items():
        name = prefix + (module.replace(".", "_") if flat else module)
        out[f"{name}.{down}.weight"] = a.clone()
        out[f"{name}.{up}.weight"] = b.clone() if alpha else b * (number / len(a))
        if alpha:
            out[f"{name}.alpha"] = torch.tensor(number)
    return out


def omi(layers: Layers) -> dict[str, Tensor]:
    """As OneTrainer's OMI format has them: three numbered parts of each ``qkv``."""
    parts: Layers = {}
    for name, (a, b, alpha) in layers.items():
        stacked = {f"{name}.{n}": (a, part, alpha) for n, part in enumerate(b.chunk(3))}
        parts |= stacked if name.endswith("qkv") else {name: (a, b, alpha)}
    return written(parts, "transformer.", **ONE_TRAINER)


KOHYA = {"flat": True, "down": "lora_down", "up": "lora_up", "alpha": True}
ONE_TRAINER = {"down": "lora_down", "up": "lora_up", "alpha": True}
OF_DIFFUSERS = {
    "diffusers": lambda layers: written(layers, "transformer."),
    "OneTrainer": lambda layers: written(layers, "transformer.", **ONE_TRAINER),
    "OneTrainer, SD3": lambda layers: written(layers, "lora_transformer_", **KOHYA),
    "musubi-tuner": lambda layers: written(layers, "lora_unet_", **KOHYA),
    "ai-toolkit": lambda layers: written(layers, "diffusion_model."),
    "SimpleTuner": lambda layers: written(layers, "lycoris_", **KOHYA),
    "peft": lambda layers: written(layers, "base_model.model."),
}
"""How programs write layers that they know by diffusers' names."""
OF_NATIVE = {
    "this pack": lambda layers: written(layers, "diffusion_model.", alpha=True),
    "ai-toolkit": lambda layers: written(layers, "diffusion_model."),
    "kohya and musubi-tuner": lambda layers: written(layers, "lora_unet_", **KOHYA),
    "peft": lambda layers: written(layers, "base_model.model."),
    "OneTrainer": lambda layers: written(layers, "", alpha=True),
    "OneTrainer, OMI": omi,
}
"""How programs write layers that they know by native names: ai-toolkit FLUX.2 and Krea 2, kohya
SD3, musubi-tuner FLUX.2 and Krea 2."""


def updates_in(lora: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The dense updates of a file of ours."""
    out = {}
    for key, a in lora.items():
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            alpha = float(lora.get(f"{name}.alpha", len(a)))
            out[name.removeprefix(prefix)] = lora[f"{name}.lora_B.weight"] @ a * (alpha / len(a))
    return out


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        torch.testing.assert_close(found[name], update, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("program", OF_DIFFUSERS)
def test_diffusers_names_become_native_names_and_back(names, program):
    lora = OF_DIFFUSERS[program](names.diffusers)
    of_diffusers, natively = names.dense()
    native = convert_lora(lora, "native")
    assert_same(updates_in(native, "diffusion_model."), natively)
    for file in (lora, native):
        back = convert_lora(file, "diffusers")
        assert_same(updates_in(back, "transformer."), of_diffusers)


@pytest.mark.parametrize("program", OF_NATIVE)
def test_native_names_become_diffusers_names_and_back(names, program):
    lora = OF_NATIVE[program](names.native)
    updates = {name: b @ a * (alpha / len(a)) for name, (a, b, alpha) in names.native.items()}
    assert_same(updates_in(convert_lora(lora, "native"), "diffusion_model."), updates)
    found = updates_in(convert_lora(lora, "diffusers"), "transformer.")
    state = {n: torch.zeros_like(t) for n, t in names.transformer.state_dict().items()}
    state |= {f"{name}.weight": update for name, update in found.items()}
    assert_same(natively(names.family, state), updates)


def test_a_file_of_any_program_is_trained_on_as_the_same_updates(names):
    transformer = small_pipeline(names.family).transformer
    entry = FAMILIES[names.family].load.args[0]
    config = LoraConfig(rank=6, alpha=12.0, targets="all-linear")
    fresh = PeftAdapter(transformer, config, 0, entry.targets).state_dict()
    modules = {name.split(".lora_")[0] for name in fresh}
    trained = {name: layer for name, layer in names.diffusers.items() if name in modules}
    files = [write(trained) for write in OF_DIFFUSERS.values()]
    files.append(convert_lora(files[0], "native"))
    wanted, _ = names.dense()
    for lora in files:
        state = start_from(lora, fresh, config.scale)
        for name in modules:
            a, b = (state[f"{name}.lora_{side}.weight"] for side in "AB")
            torch.testing.assert_close(b @ a * config.scale, wanted[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("other", FAMILIES_WITH_NAMES)
def test_a_lora_of_another_family_is_refused_by_its_layers(names, other):
    skip_where_diffusers_is_old(other)
    modules = small_pipeline(other).transformer.named_modules()
    linears = {n: tuple(m.weight.shape) for n, m in modules if isinstance(m, torch.nn.Linear)}
    fresh = {k: v.clone() for k, v in written(names.diffusers, "").items()}
    lora = written(random_layers(linears), "transformer.")
    for file in (lora, convert_lora(lora, "native", other)):
        if other == names.family:
            assert start_from(file, fresh, 1.0).keys() == fresh.keys()
            continue
        with pytest.raises(ValueError) as caught:
            start_from(file, fresh, 1.0)
        said = r"[1-9]\d* of the [1-9]\d* layers of this LoRA are none of the adapter's: \w"
        assert re.match(said, str(caught.value)), caught.value


def chroma_layers() -> Layers:
    skip_where_diffusers_is_old("chroma")
    return random_layers(
        {
            name: tuple(layer.weight.shape)
            for name, layer in small_pipeline("chroma").transformer.named_modules()
            if isinstance(layer, torch.nn.Linear)
        }
    )


def test_chroma_has_the_names_of_flux_1():
    layers = {name: v for name, v in chroma_layers().items() if "transformer_blocks." in name}
    native = convert_lora(written(layers, "transformer."), "native", "chroma")
    contents = read_lora(native).layers
    found = {name: (layer.a, layer.b, layer.alpha) for name, layer in contents.items()}
    assert_same(deltas(pieces_of(found)), deltas(layers))


def test_every_layer_of_chroma_has_both_names_and_those_of_omi():
    layers = chroma_layers()
    native = convert_lora(written(layers, "transformer."), "native", "chroma")
    assert "diffusion_model.distilled_guidance_layer.layers.0.in_layer.alpha" in native
    contents = read_lora(native).layers.items()
    parts = numbered({name: (layer.a, layer.b, layer.alpha) for name, layer in contents})
    assert "single_blocks.0.linear1.3" in parts and "img_in.proj" in parts
    for lora in (native, written(parts, "transformer.", **ONE_TRAINER)):
        back = convert_lora(lora, "diffusers", "chroma")
        assert_same(updates_in(back, "transformer."), deltas(layers))


def attention(prefix: str) -> dict[str, Tensor]:
    layers = random_layers({f"transformer_blocks.3.attn.to_{letter}": (8, 8) for letter in "qkv"})
    return written(layers, prefix)


@pytest.mark.parametrize(
    ("family", "module"),
    [
        ("flux", "double_blocks.3.img_attn.qkv"),
        ("chroma", "double_blocks.3.img_attn.qkv"),
        ("flux2-klein", "double_blocks.3.img_attn.qkv"),
        ("sd3", "joint_blocks.3.x_block.attn.qkv"),
        ("krea2", "blocks.3.attn.wq"),
        ("qwen-image", "transformer_blocks.3.attn.to_q"),
    ],
)
def test_names_of_several_models_are_asked_about(tmp_path, family, module):
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(attention("transformer."), source)
    words = ["convert", str(source), str(target), "--to", "native"]
    refused = CliRunner().invoke(app, words, terminal_width=250)
    text = " ".join(refused.output.split())
    assert refused.exit_code == 2 and not target.exists()
    assert "may be layers of FLUX.1" in text and "Qwen-Image" in text and "--model" in text
    done = CliRunner().invoke(app, [*words, "--model", family], terminal_width=250)
    assert done.exit_code == 0, done.output
    assert f"diffusion_model.{module}.lora_A.weight" in load_file(target)


def test_a_native_prefix_is_no_question():
    found = convert_lora(attention("diffusion_model."), "diffusers")
    assert set(found) == {
        f"transformer.transformer_blocks.3.attn.to_{letter}.lora_{side}.weight"
        for letter in "qkv" for side in "AB"
    }  # fmt: skip


def test_a_model_that_is_not_known_or_another_one_is_refused():
    with pytest.raises(ValueError, match="'sdxl'; it must be one of flux, chroma, flux2, "):
        convert_lora(attention("transformer."), "native", "sdxl")
    with pytest.raises(ValueError, match="3 of the 3 layers .* are not layers of Z-Image"):
        convert_lora(attention("transformer."), "native", "z-image")


def test_the_wrong_shape_is_refused():
    layers = random_layers({"single_transformer_blocks.0.attn.to_qkv_mlp_proj": (56, 8)})
    with pytest.raises(ValueError, match="linear1 maps 8 to 56 numbers.* not FLUX.2's shape"):
        convert_lora(written(layers, "transformer."), "native")
