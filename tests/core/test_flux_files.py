"""Files of models: recognised by their headers, renamed without a change, refused by name."""

from __future__ import annotations

import flux_sources
import pytest
import torch
from environment import package
from safetensors.torch import save, save_file

from chunk_grpo_core.models.flux.convert import diffusers_state, flux_config
from chunk_grpo_core.models.flux.files import find_part
from chunk_grpo_core.models.flux.identify import identify
from chunk_grpo_core.models.flux.vae import diffusers_vae_state, vae_config
from chunk_grpo_core.models.weight_file import read_header, read_tensors

#: What a header has -> what the message says.
OTHERS = {
    "joint_blocks.0.context_block.attn.qkv.weight": "an SD3 transformer",
    "double_stream_modulation_img.lin.weight": "a FLUX.2 transformer",
    "distilled_guidance_layer.in_proj.weight": "a Chroma transformer",
    "transformer_blocks.0.img_mod.1.weight": "a Qwen-Image transformer",
    "input_blocks.0.0.weight": "a Stable Diffusion U-Net",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": "a LoRA",
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": "a LoRA",
    "controlnet_blocks.0.weight": "a ControlNet",
    "vision_model.encoder.layers.0.mlp.fc1.weight": "a CLIP vision model",
    "model.layers.0.self_attn.q_proj.weight": "a language model",
    "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": (
        "a whole checkpoint with an SD3 transformer"
    ),
    "somebody.elses.weight": "something unknown (its first tensors: somebody.elses.weight)",
}


def write(path, tensors):
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(("name", "title"), OTHERS.items(), ids=OTHERS.values())
def test_another_models_file_is_refused_by_what_it_is(tmp_path, name, title):
    file = read_header(write(tmp_path / "flux1-dev.safetensors", {name: torch.zeros(1)}))
    with pytest.raises(ValueError, match="not a FLUX.1 transformer") as caught:
        find_part(file, "transformer")
    assert f"flux1-dev.safetensors is {title}, not" in str(caught.value)


def test_the_parts_of_flux_are_told_from_each_other(tmp_path):
    models = {
        "a FLUX.1 transformer": flux_sources.native_transformer(flux_sources.transformer()),
        "a Stable Diffusion VAE": flux_sources.native_vae(flux_sources.vae()),
        "a CLIP-L text encoder": flux_sources.clip_file(flux_sources.clip()),
        "a T5 text encoder": flux_sources.t5_file(flux_sources.t5()),
    }
    for number, (title, tensors) in enumerate(models.items()):
        file = read_header(write(tmp_path / f"{number}.safetensors", tensors))
        assert identify(file.shapes) == title
        kinds = [kind for kind in ("transformer", "vae", "clip", "t5") if is_part(file, kind)]
        assert kinds == [["transformer", "vae", "clip", "t5"][number]]


def is_part(file, kind):
    try:
        find_part(file, kind)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("channels, title", [(16, "a FLUX.1 or SD3 VAE"), (4, "a Stable Diff")])
def test_a_vae_is_named_by_its_latents(tmp_path, channels, title):
    shape = {"decoder.conv_in.weight": torch.zeros(2, channels, 3, 3)}
    assert identify(read_header(write(tmp_path / "x.safetensors", shape)).shapes).startswith(title)


def test_files_that_cannot_be_read_are_named(tmp_path):
    whole = save({"img_in.weight": torch.zeros(100, 100)})
    (tmp_path / "cut.safetensors").write_bytes(whole[:-50])
    (tmp_path / "page.safetensors").write_text("<!doctype html>")
    for name in ("cut", "page"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors is no complete safetensors"):
            read_header(tmp_path / f"{name}.safetensors")
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.ckpt must be a \.safetensors or \.gguf file"):
        read_header(tmp_path / "model.ckpt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_header(tmp_path / "absent.safetensors")


def test_weights_quantised_in_another_way_are_refused(tmp_path):
    tensors = flux_sources.native_transformer(flux_sources.transformer())
    packed = tensors | {"img_in.weight": torch.zeros(128, 8, dtype=torch.uint8)}
    file = read_header(write(tmp_path / "nf4.safetensors", packed))
    with pytest.raises(ValueError, match=r"nf4\.safetensors holds U8 weights \(img_in\.weight\)"):
        read_tensors(file)
    blocks = tensors | {"img_in.weight_scale": torch.ones(128, 1)}
    file = read_header(write(tmp_path / "mx.safetensors", blocks))
    with pytest.raises(ValueError, match="holds 128 scales in one layer"):
        read_tensors(file)


def test_renaming_is_that_of_diffusers(tmp_path):
    utils = package("diffusers.loaders.single_file_utils")
    # diffusers has FLUX.1's width written into its converter, but looks at rows only.
    generator = torch.Generator().manual_seed(0)
    native = {
        name: torch.randn(len(tensor) * 24, *(1,) * (tensor.ndim - 1), generator=generator)
        for name, tensor in flux_sources.native_transformer(flux_sources.transformer()).items()
    }
    ours = diffusers_state(native)
    theirs = utils.convert_flux_transformer_checkpoint_to_diffusers(dict(native))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("guidance", [True, False])
def test_the_size_of_a_model_is_read_off_its_tensors(guidance):
    model = flux_sources.transformer(guidance)
    native = flux_sources.native_transformer(model)
    config = flux_config({name: tuple(tensor.shape) for name, tensor in native.items()})
    assert config == {name: model.config[name] for name in config}
    state = diffusers_state(native)
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_fill_and_strange_names_are_refused():
    native = flux_sources.native_transformer(flux_sources.transformer())
    shapes = {name: tuple(tensor.shape) for name, tensor in native.items()}
    with pytest.raises(ValueError, match="takes 384 numbers .* and gives 16: it needs a picture"):
        flux_config(shapes | {"img_in.weight": (128, 384)})
    for name in ("double_blocks.0.img_attn.extra.weight", "img_on.weight", "norm.scale"):
        with pytest.raises(ValueError, match="is no layer of a FLUX.1 transformer"):
            diffusers_state({name: torch.zeros(1)})


def test_the_vaes_renaming_is_that_of_diffusers():
    utils = package("diffusers.loaders.single_file_utils")
    model = flux_sources.vae()
    native = flux_sources.native_vae(model)
    ours = diffusers_vae_state(native)
    theirs = utils.convert_ldm_vae_checkpoint(dict(native), model.config)
    assert ours.keys() == theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = vae_config({name: tuple(tensor.shape) for name, tensor in ours.items()})
    assert config == {name: model.config[name] for name in config}


def test_stable_diffusions_vae_is_refused():
    shapes = {"post_quant_conv.weight": (4, 4, 1, 1), "decoder.conv_in.weight": (512, 4, 3, 3)}
    with pytest.raises(ValueError, match="4 latent channels and a post_quant_conv"):
        vae_config(shapes)
