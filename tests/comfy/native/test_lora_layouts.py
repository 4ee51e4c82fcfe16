"""LoRA files of every program on a MODEL: Apply LoRA and continue_from have the same updates."""

from __future__ import annotations

import logging

import torch
from lora_layouts import LAYOUTS, deltas, native_layers, xlabs

from ..tiny_architectures import models
from .models import (
    apply_lora,
    architecture_policy,
    distance,
    make_policy,
    merge_lora,
    random_conditioning,
    random_model,
    sample,
)


def _layers(model, **options):
    """A LoRA on every layer of the blocks of a random MODEL."""
    network = model.model.diffusion_model
    blocks = {"double": len(network.double_blocks), "single": len(network.single_blocks)}
    return native_layers(network.img_in.out_features, **blocks, **options)


def _outside(model):
    network = model.model.diffusion_model
    layers = ("img_in", "txt_in", "final_layer.linear", "time_in.in_layer")
    modules = {name: network.get_submodule(name) for name in layers}
    return {name: (layer.in_features, layer.out_features) for name, layer in modules.items()}


def _refused(build, *words):
    try:
        build()
    except ValueError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"accepted: {words}")


def test_every_layout_is_applied_as_the_same_updates(lab):
    side_branches = lab.module("nodes.bridge.side_branches").side_branches
    with torch.inference_mode():
        model = random_model(lab)
        layers = _layers(model, outside=_outside(model))
        wanted = deltas(layers)
        for name, write in LAYOUTS.items():
            found = side_branches(model, write(layers))
            assert found.keys() == wanted.keys(), name
            for module, (a, b) in found.items():
                assert distance(b @ a, wanted[module]) <= 1e-6, (name, module)
                assert not a.is_inference() and not b.is_inference()


def test_every_layout_is_trained_on_as_the_same_updates(lab):
    start_state = lab.module("nodes.bridge.side_branches").start_state
    with torch.inference_mode():
        model = random_model(lab)
        layers = _layers(model)
        wanted = deltas(layers)
        adapter = make_policy(lab, model).adapter
        fresh, scale = adapter.state_dict(), adapter.config.scale
        for name, write in LAYOUTS.items():
            state = start_state(model, write(layers), fresh, scale)
            for module, update in wanted.items():
                a, b = (state[f"{module}.lora_{side}.weight"] for side in "AB")
                assert distance(b @ a * scale, update) <= 1e-5, (name, module)


def test_layers_of_xlabs_and_the_last_modulation_are_applied(lab):
    side_branches = lab.module("nodes.bridge.side_branches").side_branches
    with torch.inference_mode():
        model = random_model(lab)
        kept, lora = xlabs(_layers(model))
        found = side_branches(model, lora)
        assert found.keys() == kept.keys()
        for module, update in deltas(kept).items():
            a, b = found[module]
            assert distance(b @ a, update) <= 1e-6, module
        layer = model.model.diffusion_model.final_layer.adaLN_modulation[1]
        a, b = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
        lora = {
            "transformer.norm_out.linear.lora_A.weight": a,
            "transformer.norm_out.linear.lora_B.weight": b,
        }
        ((_, (a_found, b_found)),) = side_branches(model, lora).items()
        scale, shift = (b @ a).chunk(2)
        assert distance(b_found @ a_found, torch.cat([shift, scale])) <= 1e-5
        applied = sample(apply_lora(lab, model, lora), random_conditioning())
        merged = sample(merge_lora(model, lora), random_conditioning())
        assert distance(applied, merged) <= 1e-4
        assert distance(merged, sample(model, random_conditioning())) > 1e-2


def test_names_of_other_architectures_are_read_with_comfyuis_tables(lab):
    """Underscores, as musubi-tuner and kohya write them, and the names of each MODEL itself."""
    native_layers_of = lab.module("nodes.bridge.side_branches").native_layers
    with torch.inference_mode():
        for name in ("sd3", "qwen_image", "z_image"):
            model = models.build(name)
            policy = architecture_policy(lab, name, model)
            modules = {key.split(".lora_")[0] for key in policy.adapter.state_dict()}
            for prefix, flat in (("diffusion_model.", False), ("lora_unet_", True)):
                lora = {}
                for module in modules:
                    layer = model.model.diffusion_model.get_submodule(module)
                    base = prefix + (module.replace(".", "_") if flat else module)
                    lora[f"{base}.lora_down.weight"] = torch.ones(2, layer.in_features)
                    lora[f"{base}.lora_up.weight"] = torch.ones(layer.out_features, 2)
                assert native_layers_of(model, lora).keys() == modules, (name, prefix)
        layer = model.model.diffusion_model.layers[0].attention.qkv  # of Z-Image; diffusers: to_k
        width, name = layer.out_features // 3, "diffusion_model.layers.0.attention.to_k"
        lora = {
            f"{name}.lora_A.weight": torch.ones(2, layer.in_features),
            f"{name}.lora_B.weight": torch.ones(width, 2),
        }
        ((module, found),) = native_layers_of(model, lora).items()
        rows = (found.b @ found.a).any(dim=1)
        assert module == "layers.0.attention.qkv"
        assert rows.tolist() == [False] * width + [True] * width + [False] * width


def test_layers_of_text_encoders_are_said_to_be_left_out(lab):
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        with torch.inference_mode():
            model = random_model(lab)
            apply_lora(lab, model, LAYOUTS["kohya with a text encoder"](_layers(model)))
    finally:
        logging.getLogger().removeHandler(handler)
    assert len(records) == 1 and "1 layers of text encoders" in records[0], records


def test_parts_that_fit_nowhere_are_refused_with_their_names(lab):
    start_state = lab.module("nodes.bridge.side_branches").start_state
    with torch.inference_mode():
        model = random_model(lab)
        native = LAYOUTS["native"](_layers(model))
        damaged = {key.replace("blocks.1.", "blocks.1_"): value for key, value in native.items()}
        fresh = make_policy(lab, model).adapter.state_dict()
        for use in (
            lambda lora: apply_lora(lab, model, lora),
            lambda lora: start_state(model, lora, fresh, 1.0),
        ):
            _refused(lambda use=use: use(damaged), "double_blocks.1_img_attn.proj", "layers of")
            layer = "diffusion_model.blocks.0.self_attn.q"
            wan = {f"{layer}.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
            _refused(lambda use=use, wan=wan: use(wan), "1 of the 1 layers", "look", "Wan")
            bad = native | {next(iter(native)): torch.full((3, 96), float("nan"))}
            _refused(lambda use=use, bad=bad: use(bad), "holds NaN")
        few = make_policy(lab, model, targets="attention").adapter.state_dict()
        _refused(lambda: start_state(model, native, few, 1.0), "lora.targets", "img_mlp")


def test_damaged_weights_are_named_with_their_file(lab, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    loras, apply = lab.module("nodes.loras"), lab.module("nodes.apply")
    path = tmp_path / "nan.safetensors"
    save_file({"diffusion_model.x.lora_A.weight": torch.full((2, 2), float("nan"))}, path)
    for module in (loras, apply):
        monkeypatch.setattr(module, "lora_file", lambda name: path)
    words = (str(path), "x.lora_A.weight")
    _refused(lambda: loras.LoadLoRAFile.execute("nan.safetensors"), *words, "holds NaN")
    with torch.inference_mode():
        model = random_model(lab)
        _refused(lambda: apply.ApplyLoRA.execute(model, "nan.safetensors", 1.0, 0.0, 1.0), *words)
