"""FLUX.1 from disk: every way to load it gives the function of the models that were written."""

from __future__ import annotations

import functools
import os
import sys
import types
from pathlib import Path

import flux_sources
import pytest
import torch
from environment import package
from flux_sources import PROMPTS
from safetensors.torch import load_file, save_file

from chunk_grpo_core.lora.adapter import LoraConfig, PeftAdapter
from chunk_grpo_core.models.flux import text as flux_text
from chunk_grpo_core.models.flux.config import FluxModel
from chunk_grpo_core.models.flux.loading import flux_policy
from chunk_grpo_core.models.flux.policy import predict_velocity
from chunk_grpo_core.models.flux.transformer import load_transformer
from chunk_grpo_core.models.fp8 import Fp8Linear, to_fp8, widened
from chunk_grpo_core.prompts.example import Example

CPU = torch.device("cpu")
LENGTH = 12


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return flux_sources.write_single_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return flux_sources.write_pipeline(tmp_path_factory.mktemp("models") / "small-flux")


def model_of(keys, cache, **changes):
    fixed = {"weights": "float32", "width": 96, "height": 64, "max_tokens": LENGTH}
    return FluxModel(**{**fixed, **keys, "text_cache": str(cache), **changes})


def latents(height=8, width=12):
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def velocity_of(policy, prompt=PROMPTS[1]):
    return policy.run(lambda velocity: velocity(latents(), 0.7, prompt))


@torch.no_grad()
def expected(folder):
    """Velocity and pictures of the models themselves, called as diffusers' pipeline does."""
    from transformers import CLIPTokenizer, T5TokenizerFast

    words = [
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        T5TokenizerFast.from_pretrained(folder / "tokenizer_2"),
    ]
    clip, t5 = flux_sources.clip(len(words[0])), flux_sources.t5()
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = [
        tokenizer(PROMPTS[1], max_length=length, **options).input_ids
        for tokenizer, length in zip(words, (16, LENGTH), strict=True)
    ]
    pooled, features = clip(ids[0]).pooler_output, t5(ids[1])[0]
    model = flux_sources.transformer()
    both = (part.expand(2, *part.shape[1:]) for part in (features, pooled))
    velocity = predict_velocity(model, latents(), torch.full((2,), 0.7), *both, 3.5)
    vae = flux_sources.vae()
    pictures = vae.decode(latents() / 0.3611 + 0.1159).sample
    return velocity, (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


@pytest.mark.slow
def test_single_files_and_pipelines_compute_what_was_written(files, pipeline, tmp_path):
    velocity, pictures = expected(Path(pipeline["path"]))
    for keys in (files, pipeline):
        policy = flux_policy(model_of(keys, tmp_path / str(len(keys))), PROMPTS)
        assert policy.latent_shape == (4, 8, 12)
        torch.testing.assert_close(velocity_of(policy), velocity, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(policy.decode(latents()), pictures, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_whole_checkpoint_gives_all_its_parts(files, tmp_path):
    prefixes = {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "clip": "text_encoders.clip_l.transformer.",
        "t5": "text_encoders.t5xxl.transformer.",
    }
    together = {
        prefix + name: tensor
        for part, prefix in prefixes.items()
        for name, tensor in load_file(files[part]).items()
    }
    path = tmp_path / "flux1-dev-fp8.safetensors"
    save_file(together, path)
    one = flux_policy(model_of(files, tmp_path / "a"), PROMPTS)
    whole = files | dict.fromkeys(prefixes, str(path))
    other = flux_policy(model_of(whole, tmp_path / "b"), PROMPTS)
    assert torch.equal(velocity_of(one), velocity_of(other))
    assert torch.equal(one.decode(latents()), other.decode(latents()))
    assert other.name == "flux1-dev-fp8.safetensors"


def test_files_with_diffusers_names_load_too(pipeline, files):
    file = Path(pipeline["path"]) / "transformer" / "diffusion_pytorch_model.safetensors"
    one = load_transformer(file, "float32", CPU).state_dict()
    other = load_transformer(Path(files["transformer"]), "float32", CPU).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_examples_with_one_text_are_encoded_once_and_drawn_alike(files, tmp_path, monkeypatch):
    encoded = []
    load = flux_text._encoders

    def counting(*args):
        encode = load(*args)
        return lambda text: encoded.append(text) or encode(text)

    monkeypatch.setattr(flux_text, "_encoders", counting)
    examples = [Example(PROMPTS[1], {"target_text": word}) for word in ("open", "shut")]
    policy = flux_policy(model_of(files, tmp_path), [*examples, PROMPTS[1]])
    assert encoded == [PROMPTS[1]]
    first, second, plain = (velocity_of(policy, prompt) for prompt in (*examples, PROMPTS[1]))
    assert torch.equal(first, second) and torch.equal(first, plain)


def test_encoders_are_not_loaded_for_prompts_that_are_known(files, tmp_path, monkeypatch):
    model = model_of(files, tmp_path)
    first = velocity_of(flux_policy(model, PROMPTS))
    monkeypatch.setattr(flux_text, "load_t5", None)
    again = flux_policy(model, PROMPTS[1:])
    assert torch.equal(velocity_of(again), first)
    with pytest.raises(ValueError, match="'a red fox' was not encoded"):
        velocity_of(again, PROMPTS[0])
    with pytest.raises(TypeError):  # another length is another text
        flux_policy(model_of(files, tmp_path, max_tokens=LENGTH + 1), PROMPTS)
    os.utime(files["t5"], ns=(1, 1))  # and so is another file
    with pytest.raises(TypeError):
        flux_policy(model, PROMPTS)


@functools.cache
def features():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 6, 32, generator=generator), torch.randn(2, 64, generator=generator)


def gradients(model, dtype):
    """Velocity, and gradients of a LoRA that was moved a little."""
    adapter = PeftAdapter(model.to(dtype) if dtype else model, LoraConfig(rank=2, alpha=2.0), 0)
    with torch.no_grad():
        for number, parameter in enumerate(adapter.parameters()):
            seed = torch.Generator().manual_seed(number)
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seed))
    velocity = predict_velocity(model, latents(), torch.full((2,), 0.7), *features(), 3.5)
    velocity.square().mean().backward()
    return velocity.detach(), torch.cat([p.grad.flatten() for p in adapter.parameters()])


@pytest.fixture(scope="module")
def scaled(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("fp8") / "flux1-dev-scaled.safetensors"
    save_file(flux_sources.scaled_fp8(load_file(files["transformer"])), path)
    return path


def test_scaled_fp8_files_compute_the_same_in_8_bits_and_widened(scaled, files):
    narrow = load_transformer(scaled, "fp8", CPU)
    wide = load_transformer(scaled, "bf16", CPU)
    layers = [child for child in narrow.modules() if isinstance(child, Fp8Linear)]
    assert len(layers) == 2 * 14 + 2 * 6  # modulations too, because the file has them in 8 bits
    assert narrow.dtype == torch.bfloat16
    velocity, grads = gradients(narrow, None)
    wide_velocity, wide_grads = gradients(wide, None)
    torch.testing.assert_close(velocity, wide_velocity, rtol=0.02, atol=0.02)
    torch.testing.assert_close(
        grads, wide_grads, rtol=0.05, atol=float(wide_grads.abs().max()) / 50
    )
    exact = load_transformer(Path(files["transformer"]), "float32", CPU)
    read = load_transformer(scaled, "float32", CPU)
    for name, tensor in exact.state_dict().items():
        error = (read.state_dict()[name] - tensor).abs().max()
        assert error <= tensor.abs().max() / 16  # half a step of 3 bits of mantissa


def test_fp8_of_16_bit_weights_has_a_scale_for_each_layer(files):
    exact = load_transformer(Path(files["transformer"]), "bf16", CPU)
    narrow = load_transformer(Path(files["transformer"]), "fp8", CPU)
    found = 0
    for name, layer in narrow.named_modules():
        if isinstance(layer, Fp8Linear):
            found += 1
            weight = exact.get_submodule(name).weight.float()
            largest = (layer.weight.float() * layer.scale_weight).abs().max()
            torch.testing.assert_close(largest, weight.abs().max(), rtol=1e-3, atol=0)
            assert "norm" not in name and layer.weight.dtype == torch.float8_e4m3fn
    assert found == 2 * 12 + 2 * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_scale_as_a_number_widens_to_the_same_bits(dtype):
    weight, scale = to_fp8(torch.randn(32, 48, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(widened(weight, scale.item(), dtype), widened(weight, scale, dtype))
    kept = weight.float()
    widened(kept, 0.5, torch.float32)
    assert torch.equal(kept, weight.float())  # a weight that needs no conversion is not changed


def test_the_number_follows_the_scale():
    layer = Fp8Linear(torch.nn.Linear(4, 4))
    for scale in (2.0, 3.0):
        layer.scale_weight = torch.tensor(scale)
        assert layer.scale == scale


def test_backward_keeps_8_bits_and_not_16(files):
    model = load_transformer(Path(files["transformer"]), "fp8", CPU)
    PeftAdapter(model, LoraConfig(rank=2, alpha=2.0), 0)
    shapes = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, Fp8Linear)}
    shapes |= {shape[::-1] for shape in shapes}
    kept = []

    def remember(tensor):
        if tuple(tensor.shape) in shapes and tensor.shape[0] > 100 < tensor.shape[1]:
            kept.append(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        predict_velocity(model, latents(), torch.full((2,), 0.7), *features(), 3.5)
    # 12 layers of a double block are 8 bits; its text side ends early in the last one.
    assert kept.count(torch.float8_e4m3fn) >= 20
    assert kept.count(torch.bfloat16) == 0


def test_gguf_keeps_its_blocks(tmp_path):
    gguf = package("gguf")
    model = flux_sources.transformer()
    native = flux_sources.native_transformer(model)
    path = tmp_path / "flux1-dev-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in native.items():
        is_block = "_blocks." in name and tensor.ndim == 2
        values = tensor.numpy()
        if is_block:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = load_transformer(path, "gguf", CPU)
    velocity, grads = gradients(loaded, None)
    exact, exact_grads = gradients(model, torch.bfloat16)
    assert (velocity - exact).norm() < 0.05 * exact.norm()
    assert (grads - exact_grads).norm() < 0.1 * exact_grads.norm()
    with pytest.raises(ValueError, match=r"'gguf' is for \.gguf files alone"):
        load_transformer(path, "bf16", CPU)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is no complete GGUF file"):
        load_transformer(path, "gguf", CPU)


@pytest.mark.parametrize("weights", ["int8", "nf4"])
def test_what_bitsandbytes_needs_is_named(files, weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"chunk-grpo-core\[low-memory\]"):
        load_transformer(Path(files["transformer"]), weights, CPU)
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    with pytest.raises(ValueError, match=f"weights is '{weights}', which needs a CUDA device"):
        load_transformer(Path(files["transformer"]), weights, CPU)


def test_files_with_missing_and_unknown_tensors_are_refused(files, tmp_path):
    tensors = load_file(files["transformer"])
    del tensors["double_blocks.1.img_mlp.0.bias"]
    path = tmp_path / "half.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"half\.safetensors .* 1 tensors are missing, for"):
        load_transformer(path, "bf16", CPU)
    tensors["double_blocks.1.img_mlp.0.bias"] = torch.zeros(7)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"of another shape, for example .* \(7,\), not \(512,\)"):
        load_transformer(path, "fp8", CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": ""}, r"model\.vae is missing"),
        ({"vae": "/absent/ae.safetensors"}, r"model\.vae: there is no /absent"),
        ({"transformer": "vae"}, "is a Stable Diffusion VAE, not a FLUX.1 transformer"),
        ({"vae": "t5"}, "is a T5 text encoder, not a VAE"),
        ({"clip": "t5"}, "is a T5 text encoder, not a CLIP-L text encoder"),
        ({"t5": "transformer"}, "is a FLUX.1 transformer, not a T5 text encoder"),
        ({"t5_tokenizer": "clip_tokenizer"}, r"holds no T5 tokenizer .* from ComfyUI"),
        ({"weights": "int4"}, r"model\.weights is 'int4'; it must be one of float32"),
        ({"weights": "a" * 5000}, r"model\.weights is 'a{10,100}\.\.\.[a']*; it must be one"),
        ({"weights": "gguf"}, r"weights is 'gguf'; 'gguf' is for"),
        ({"device": "gpu"}, "model.device is 'gpu'; write auto, cpu"),
        ({"path": "nobody/nothing", "vae": ""}, "neither a folder nor in the Hugging Face cache"),
        ({"path": "/absent", "vae": ""}, r"/absent is no diffusers pipeline"),
    ],
)
def test_mistakes_are_named(files, tmp_path, changes, message):
    keys = {key: files.get(value, value) for key, value in changes.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        flux_policy(model_of(files, tmp_path, **keys), PROMPTS)


@pytest.mark.parametrize("kind", ["vae", "transformer"])
def test_a_wrong_file_is_refused_before_the_encoders_are_read(files, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(flux_text, "load_t5", None)
    with pytest.raises(ValueError, match="is a T5 text encoder, not a"):
        flux_policy(model_of(files | {kind: files["t5"]}, tmp_path), PROMPTS)


@pytest.mark.parametrize("changes", [{"width": 100}, {"height": 48}, {"guidance": -1.0}])
def test_values_out_of_range_are_named(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=rf"model\.{name} is {value}; it must be"):
        FluxModel(**changes)


def test_a_model_without_guidance_takes_none(files, tmp_path):
    native = flux_sources.native_transformer(flux_sources.transformer(guidance=False))
    path = tmp_path / "schnell.safetensors"
    save_file(native, path)
    policy = flux_policy(model_of(files, tmp_path, transformer=str(path)), PROMPTS)
    assert torch.isfinite(velocity_of(policy)).all()
