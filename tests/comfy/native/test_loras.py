"""A trained LoRA is the same function through every loader of ComfyUI, and when trained on."""

from __future__ import annotations

import contextlib
import inspect
import logging
import tempfile
from pathlib import Path

import pytest
import torch

from .models import LATENT, random_conditioning, random_model, velocity_at


def _policy(lab, model, **lora):
    config = lab.module("chunk_grpo_core.lora.adapter").LoraConfig(targets="all-linear", **lora)
    policy = lab.module("nodes.bridge.policy").NativePolicy
    return policy(model, None, {"p0": random_conditioning()}, LATENT, config, 0)


def _trained(lab, model, **lora):
    """A policy whose factors are far from fresh."""
    policy = _policy(lab, model, **lora)
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode(False), torch.no_grad():
        for parameter in policy.adapter.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


@contextlib.contextmanager
def _folders():
    """Fresh loras and output folders of ComfyUI."""
    import folder_paths

    loras, output = folder_paths.folder_names_and_paths["loras"], folder_paths.output_directory
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.folder_names_and_paths["loras"] = ([f"{folder}/loras"], loras[1])
        folder_paths.output_directory = folder
        Path(folder, "loras").mkdir()
        try:
            yield Path(folder)
        finally:
            folder_paths.folder_names_and_paths["loras"] = loras
            folder_paths.output_directory = output


def _load_model(model, lora, **options):
    from comfy_extras.nodes_train import LoraModelLoader

    known = inspect.signature(LoraModelLoader.execute).parameters
    options = {"bypass": False, **options}
    return LoraModelLoader.execute(
        model, lora, 1.0, **{name: value for name, value in options.items() if name in known}
    ).args[0]


def _load_file(model, name):
    import nodes

    return nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)[0]


def _silently(action):
    """What ``action`` returns; it must log no warning."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        result = action()
    finally:
        logging.getLogger().removeHandler(handler)
    assert not records, records
    return result


def _assert_same_function(lab, model, found, wanted):
    """``found`` and ``wanted`` are velocities in float32; the LoRA must move them."""
    base = _policy(lab, model, rank=1).run(velocity_at())
    size = float(wanted.abs().max())
    error, effect = (float((v - wanted).abs().max()) / size for v in (found, base))
    print("relative error", error, "effect", effect)
    assert error <= 1e-5 and effect > 0.05, (error, effect)


def _check_loaders(lab, **lora):
    export = lab.module("chunk_grpo_core.lora.files")
    with torch.inference_mode(), _folders() as folder:
        model = random_model(lab)
        policy = _trained(lab, model, **lora)
        wanted, native = policy.run(velocity_at()), policy.lora_model()
        files = {"native": native, "diffusers": export.convert_lora(native, "diffusers")}
        for name, tensors in files.items():
            export.save_lora(tensors, folder / "loras" / f"{name}.safetensors", {"reward": "x"})
        loaders = {
            "LoraModelLoader": lambda: _load_model(model, native),
            "LoraModelLoader, bypass": lambda: _load_model(model, native, bypass=True),
            "LoraLoaderModelOnly": lambda: _load_file(model, "native.safetensors"),
            "diffusers names": lambda: _load_file(model, "diffusers.safetensors"),
        }
        for name, load in loaders.items():
            print(name)
            loaded = _silently(load)
            if "bypass" not in name:
                assert len(loaded.patches) == len(native) // 3
            _assert_same_function(lab, model, _policy(lab, loaded).run(velocity_at()), wanted)


def test_every_loader_computes_the_trained_function(lab):
    _check_loaders(lab, rank=4, alpha=6.0)


def test_every_loader_computes_the_trained_function_of_rslora(lab):
    _check_loaders(lab, rank=6, alpha=3.0, rs=True)


def test_the_standard_save_node_writes_our_file(lab):
    from comfy_extras.nodes_train import SaveLoRA

    export = lab.module("chunk_grpo_core.lora.files")
    with torch.inference_mode(), _folders() as folder:
        lora = _trained(lab, random_model(lab), rank=4, alpha=6.0).lora_model()
        SaveLoRA.execute(lora, "loras/theirs", 7)
        (path,) = Path(folder, "loras").iterdir()
        tensors, _ = export.load_lora(path)
    assert tensors.keys() == lora.keys()
    assert all(torch.equal(tensors[name], lora[name]) for name in lora)


def test_no_file_for_diffusers_is_overwritten(lab):
    node = lab.module("nodes.loras").SaveLoRA
    with torch.inference_mode(), _folders() as folder:
        lora = _trained(lab, random_model(lab), rank=4, alpha=6.0).lora_model()
        mine = folder / "loras" / "fox_diffusers.safetensors"
        mine.write_bytes(b"mine")
        shown = [node.execute(lora, "fox", True).ui.as_dict()["text"] for _ in range(2)]
        assert mine.read_bytes() == b"mine"
        assert {path.name for path in mine.parent.iterdir()} == {
            "fox.safetensors", "fox_diffusers.safetensors", "fox_diffusers_2.safetensors",
            "fox_2.safetensors", "fox_2_diffusers.safetensors",
        }  # fmt: skip
        assert "fox_diffusers_2.safetensors" in str(shown[0])


def test_a_lora_without_names_for_diffusers_is_refused_with_the_way_out(lab):
    node = lab.module("nodes.loras").SaveLoRA
    names = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 8)}
    lora = {**names, "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.ones(8, 2)}
    with torch.inference_mode(), _folders() as folder:
        with pytest.raises(ValueError, match="look like Wan.*Turn for_diffusers off"):
            node.execute(lora, "wan", True)
        assert not list(folder.rglob("*.safetensors"))
        node.execute(lora, "wan", False)
        assert (folder / "loras" / "wan.safetensors").is_file()


def test_a_name_too_long_for_either_file_is_refused_before_anything_runs(lab):
    module = lab.module("nodes.loras")
    accepts = module.SaveLoRA.validate_inputs
    longest = next(n for n in range(1, 300) if accepts("x" * n) is not True) - 1
    assert 20 < longest < 255 and accepts("x" * longest) is True
    assert "cannot be a file name" in accepts("x" * (longest + 1))
    assert len(module._for_diffusers("x" * longest)) - longest > 5


def test_a_lora_is_trained_on_as_the_function_it_is(lab):
    """From the socket or a file, at another rank and scale, on a MODEL that ran as a node does."""
    export = lab.module("chunk_grpo_core.lora.files")
    start_state = lab.module("nodes.bridge.side_branches").start_state
    with torch.inference_mode():
        model = random_model(lab)
        policy = _trained(lab, model, rank=4, alpha=6.0)
        wanted, native = policy.run(velocity_at()), policy.lora_model()
        starts = (native, export.convert_lora(native, "diffusers"))
        starts += ({name: tensor.clone() for name, tensor in native.items()},)  # inference tensors
        for start in starts:
            for lora in ({"rank": 4, "alpha": 6.0}, {"rank": 7, "alpha": 1.0, "rs": True}):
                with torch.inference_mode(False):
                    adapter = (other := _policy(lab, model, **lora)).adapter
                    fresh, scale = adapter.state_dict(), adapter.config.scale
                    adapter.load_state_dict(start_state(model, start, fresh, scale))
                _assert_same_function(lab, model, other.run(velocity_at()), wanted)


def test_loras_of_other_trainers_are_refused_by_name(lab):
    """ComfyUI's own trainer also moves biases, which this adapter cannot hold."""
    start_state = lab.module("nodes.bridge.side_branches").start_state
    with torch.inference_mode(False):
        model = random_model(lab)
        fresh = _policy(lab, model, rank=4).adapter.state_dict()
        lora = {
            "diffusion_model.double_blocks.0.img_attn.qkv.diff_b": torch.zeros(1),
        }
        try:
            start_state(model, lora, fresh, 1.0)
        except ValueError as error:
            assert "img_attn.qkv.diff_b" in str(error) and "lora_A" in str(error)
        else:
            raise AssertionError("a bias was overlooked")
