"""Transformer files in 8 bits and in GGUF, as users have them, for every family of pipelines.

Small files with the true names, made here; each is held to the same numbers in 32 bits.
"""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from environment import package
from native_names import NATIVE
from pipeline_folders import PIPELINES, saved, skip_where_diffusers_is_old
from safetensors.torch import save_file
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.models.fp8 import FP8, Fp8Linear, to_fp8
from chunk_grpo_core.models.pipelines import loading
from chunk_grpo_core.models.registry import FAMILIES

PROMPT = "a red fox"
WIDER = {
    "z-image": {"dim": 64, "n_heads": 8, "n_kv_heads": 8},
    "sd3": {"num_attention_heads": 4, "caption_projection_dim": 32},
}
"""Changes of the small transformers, so that rows hold whole blocks of 32 numbers; of all others
only the number of heads."""
BLOCK = re.compile(r"(^|\.)(\w*blocks|layers|\w*_refiner)\.\d+\..*weight$")
SCALES = {
    "plain": (None, {}),
    "older": (".scale_weight", {"scaled_fp8": torch.zeros(0).to(FP8)}),
    "newer": (".weight_scale", {}),
}
"""Layout of an fp8 file -> ending of its scales, and what else is in it."""


class Made:
    """A pipeline with a wider transformer, and files of its numbers."""

    def __init__(self, family: str, place: Path) -> None:
        import diffusers

        self.family, self.place = family, place
        self.folder = saved(family, place / "small")
        entry = FAMILIES[family].load.args[0]
        kind = getattr(diffusers, entry.transformer)
        changes = WIDER.get(family, {"num_attention_heads": 4})
        config = kind.load_config(self.folder / "transformer")
        torch.manual_seed(0)
        transformer = kind.from_config({**config, **changes})
        with torch.no_grad():
            for parameter in transformer.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.2)
        transformer.save_pretrained(self.folder / "transformer")
        state = dict(transformer.state_dict())
        self.state = NATIVE[family](state) if family in NATIVE else state

    def write(self, name: str, state: dict[str, torch.Tensor]) -> str:
        file = self.place / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
        return str(file)

    def fp8(self, layout: str) -> tuple[str, str]:
        """An fp8 file, and one of the same numbers in 32 bits."""
        ending, extra = SCALES[layout]
        packed, plain = dict(extra), {}
        for name, tensor in self.state.items():
            packed[name] = plain[name] = tensor
            if tensor.ndim == 2 and BLOCK.search(name):
                weight, scale = to_fp8(tensor) if ending else (tensor.to(FP8), torch.ones(()))
                packed[name], plain[name] = weight, weight.float() * scale
                if ending:
                    packed[name.removesuffix(".weight") + ending] = scale
        return self.write(f"fp8-{layout}", packed), self.write(f"plain-{layout}", plain)

    def gguf(self) -> tuple[str, str]:
        """A GGUF file in Q8_0, and one of the same numbers in 32 bits."""
        gguf = package("gguf")
        kind, plain = gguf.GGMLQuantizationType.Q8_0, {}
        writer = gguf.GGUFWriter(self.place / "small-Q8_0.gguf", "small")
        for name, tensor in self.state.items():
            values = tensor.detach().numpy()
            if tensor.ndim == 2 and BLOCK.search(name) and tensor.shape[1] % 32 == 0:
                packed = gguf.quants.quantize(values, kind)
                writer.add_tensor(name, packed, raw_dtype=kind)
                values = gguf.quants.dequantize(packed, kind)
            else:
                writer.add_tensor(name, values)
            plain[name] = torch.from_numpy(values.copy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return str(self.place / "small-Q8_0.gguf"), self.write("plain-gguf", plain)

    def policy(self, transformer: str, weights: str) -> Any:
        family = FAMILIES[self.family]
        table = family.table(
            path=str(self.folder), transformer=transformer, weights=weights, width=64, height=64,
            device="cpu", guidance=0.0, text_cache=str(self.place / "text"),
        )  # fmt: skip
        lora = LoraConfig(rank=2, targets="all-linear")
        return family.load(table, [PROMPT], lora, 0, keep_on_cpu=False)


@pytest.fixture(scope="module", params=PIPELINES)
def made(request, tmp_path_factory):
    package("accelerate")
    skip_where_diffusers_is_old(request.param)
    return Made(request.param, tmp_path_factory.mktemp(request.param))


def computed(policy: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Velocity, and the gradients of all factors in one row."""
    generator = torch.Generator().manual_seed(4)
    for parameter in policy.adapter.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    x_t, slope = torch.randn(2, 2, *policy.latent_shape, generator=generator)
    v_t = policy.run(lambda velocity: velocity(x_t, 0.6, PROMPT))
    (v_t * slope).sum().backward()
    rows = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.adapter.parameters()]
    return v_t.detach(), torch.cat([row.flatten() for row in rows])


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.slow
@pytest.mark.parametrize("layout", SCALES)
def test_an_fp8_file_is_the_numbers_that_it_stands_for(made, layout):
    packed, plain = made.fp8(layout)
    wanted = computed(made.policy(plain, "float32"))
    wide = computed(made.policy(packed, "float32"))
    for found, exact in zip(wide, wanted, strict=True):
        assert apart(found, exact) < 1e-5
    policy, in_16 = made.policy(packed, "fp8"), made.policy(plain, "bf16")
    layers = [m for m in policy.transformer.modules() if isinstance(m, Fp8Linear)]
    assert len(layers) >= 6 and all(layer.weight.dtype == FP8 for layer in layers)
    if layout == "plain":
        assert all(layer.scale == 1.0 for layer in layers)
    for found, narrow, exact in zip(computed(policy), computed(in_16), wanted, strict=True):
        assert apart(found, exact) < max(0.03, 1.5 * apart(narrow, exact))


@pytest.mark.slow
def test_a_folder_is_rounded_to_8_bits(made):
    policy, exact = made.policy("", "fp8"), made.policy("", "float32")
    kept = {n for n, m in policy.transformer.named_modules() if isinstance(m, Fp8Linear)}
    assert kept and not any(re.search(r"norm|_mod\.|modulation|adaLN", name) for name in kept)
    (found, _), (wanted, _) = computed(policy), computed(exact)
    assert 1e-4 < apart(found, wanted) < 0.5


@pytest.mark.slow
def test_a_gguf_file_is_the_numbers_that_it_stands_for(made):
    packed, plain = made.gguf()
    policy = made.policy(packed, "gguf")
    kinds = {type(parameter).__name__ for parameter in policy.transformer.parameters()}
    assert "GGUFParameter" in kinds
    pairs = (made.policy(plain, "float32"), made.policy(plain, "bf16"))
    for found, exact, narrow in zip(computed(policy), *map(computed, pairs), strict=True):
        assert apart(found, exact) < max(0.03, 1.5 * apart(narrow, exact))


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp8", "gguf"])
def test_three_iterations_from_the_command_line(made, weights, tmp_path):
    transformer, _ = made.gguf() if weights == "gguf" else made.fp8("newer")
    model = {
        "type": made.family, "path": str(made.folder), "transformer": transformer,
        "weights": weights, "text_cache": str(made.place / "text"), "device": "cpu",
        "width": 64, "height": 64,
    }  # fmt: skip
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in model.items())
    file = tmp_path / "small.toml"
    file.write_text(
        # In 16 bits, which these compute in, random models this small are too rough to measure.
        "iterations = 3\nprompts_per_iteration = 2\ngroup_size = 2\nself_test = false\n"
        f"[model]\n{table}\nguidance = 0.0\n"
        '[prompts]\ntext = ["a red fox", "a large bird", "two owls", "a hat"]\nheld_out = 2\n'
        '[reward]\nname = "target_colour"\n[grid]\nsteps = 3\nshift = "model"\n'
        '[plan]\nchunks = "1, 1"\n[lora]\nrank = 2\n[run]\npictures = 1\n'
    )
    command = ["train", str(file), "--out", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_what_is_quantised_in_another_way_is_refused_before_anything_is_read(made, monkeypatch):
    monkeypatch.setattr(loading, "encoded_prompts", None)  # text comes first
    name = next(n for n, tensor in made.state.items() if tensor.ndim == 2 and BLOCK.search(n))
    packed = made.state[name].to(torch.int8)
    file = made.write("int8", {**made.state, name: packed})
    with pytest.raises(ValueError, match="model.transformer: .*holds I8 weights .*GGUF file of"):
        made.policy(file, "bf16")
    blocks = {f"{name.removesuffix('.weight')}.weight_scale": torch.ones(4, 1)}
    file = made.write("blocks", {**made.state, **blocks})
    with pytest.raises(ValueError, match="holds 4 scales in one layer"):
        made.policy(file, "fp8")


def test_kinds_of_weights_that_do_not_go_together_are_refused(made, monkeypatch):
    monkeypatch.setattr(loading, "encoded_prompts", None)
    with pytest.raises(ValueError, match="'gguf' is for .gguf files alone"):
        made.policy("", "gguf")
    (made.place / "empty.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match="model.weights is 'bf16'; 'gguf' .* every one of them"):
        made.policy(str(made.place / "empty.gguf"), "bf16")
    package("gguf")
    with pytest.raises(ValueError, match="is no complete GGUF file"):
        made.policy(str(made.place / "empty.gguf"), "gguf")
    for weights in ("int8", "nf4"):
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(ImportError, match=r"chunk-grpo-core\[low-memory\]"):
            made.policy("", weights)
        monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
        with pytest.raises(ValueError, match=f"weights is '{weights}', which needs a CUDA device"):
            made.policy("", weights)
