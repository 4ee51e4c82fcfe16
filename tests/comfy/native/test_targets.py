"""Which layers the target presets take, in the flow models of ComfyUI and in diffusers' FLUX.

Models are built from their real classes, the first ones without memory (device meta).
"""

from __future__ import annotations

import dataclasses
import re

import torch

from .models import models, quantised_model

#: Model -> layers of its blocks: attention; MLP; what only all-linear takes (modulation).
#: Native FLUX and Chroma fuse both kinds in the linear1 and linear2 of single blocks.
_FLUX_ATTENTION = """
    double_blocks.img_attn.qkv double_blocks.img_attn.proj
    double_blocks.txt_attn.qkv double_blocks.txt_attn.proj
    single_blocks.linear1 single_blocks.linear2"""
_FLUX_MLP = """
    double_blocks.img_mlp.0 double_blocks.img_mlp.2 double_blocks.txt_mlp.0 double_blocks.txt_mlp.2
"""
_FLUX_MODULATION = (
    "double_blocks.img_mod.lin double_blocks.txt_mod.lin single_blocks.modulation.lin"
)
_NEXT = ("noise_refiner", "context_refiner", "layers")
LAYERS = {
    "FLUX.1": (_FLUX_ATTENTION, _FLUX_MLP, _FLUX_MODULATION),
    "FLUX.1, quantised": (_FLUX_ATTENTION, _FLUX_MLP, _FLUX_MODULATION),
    "FLUX.2": (_FLUX_ATTENTION, _FLUX_MLP, ""),
    "Chroma": (_FLUX_ATTENTION, _FLUX_MLP, ""),
    "SD3.5": (
        """joint_blocks.x_block.attn.qkv joint_blocks.x_block.attn.proj
        joint_blocks.x_block.attn2.qkv joint_blocks.x_block.attn2.proj
        joint_blocks.context_block.attn.qkv joint_blocks.context_block.attn.proj""",
        """joint_blocks.x_block.mlp.fc1 joint_blocks.x_block.mlp.fc2
        joint_blocks.context_block.mlp.fc1 joint_blocks.context_block.mlp.fc2""",
        "joint_blocks.x_block.adaLN_modulation.1 joint_blocks.context_block.adaLN_modulation.1",
    ),
    "Qwen-Image": (
        """transformer_blocks.attn.to_q transformer_blocks.attn.to_k transformer_blocks.attn.to_v
        transformer_blocks.attn.add_q_proj transformer_blocks.attn.add_k_proj
        transformer_blocks.attn.add_v_proj transformer_blocks.attn.to_out.0
        transformer_blocks.attn.to_add_out""",
        """transformer_blocks.img_mlp.net.0.proj transformer_blocks.img_mlp.net.2
        transformer_blocks.txt_mlp.net.0.proj transformer_blocks.txt_mlp.net.2""",
        "transformer_blocks.img_mod.1 transformer_blocks.txt_mod.1",
    ),
    "Z-Image": (
        " ".join(f"{name}.attention.qkv {name}.attention.out" for name in _NEXT),
        " ".join(f"{name}.feed_forward.w{i}" for name in _NEXT for i in (1, 2, 3)),
        "noise_refiner.adaLN_modulation.0 layers.adaLN_modulation.0",
    ),
    "FLUX.1 of diffusers": (
        """transformer_blocks.attn.to_q transformer_blocks.attn.to_k transformer_blocks.attn.to_v
        transformer_blocks.attn.add_q_proj transformer_blocks.attn.add_k_proj
        transformer_blocks.attn.add_v_proj transformer_blocks.attn.to_out.0
        transformer_blocks.attn.to_add_out single_transformer_blocks.attn.to_q
        single_transformer_blocks.attn.to_k single_transformer_blocks.attn.to_v""",
        """transformer_blocks.ff.net.0.proj transformer_blocks.ff.net.2
        transformer_blocks.ff_context.net.0.proj transformer_blocks.ff_context.net.2
        single_transformer_blocks.proj_mlp single_transformer_blocks.proj_out""",
        """transformer_blocks.norm1.linear transformer_blocks.norm1_context.linear
        single_transformer_blocks.norm.linear""",
    ),
}


#: Settings of Chroma that newer versions ask for.
_NEWER = {"txt_ids_dims": [], "vec_in_dim": None}


def _options():
    import comfy.ops

    operations = comfy.ops.disable_weight_init
    return {"dtype": torch.float32, "device": "meta", "operations": operations}


def _flux(lab, **changed):
    from comfy.ldm.flux.model import Flux

    config = lab.module("nodes.bridge.tiny")._unet_config()
    return Flux(**{**config, "depth": 1, "depth_single_blocks": 1, **changed}, **_options())


def _flux_2(lab):
    return _flux(
        lab, global_modulation=True, mlp_silu_act=True, ops_bias=False, qkv_bias=False,
        mlp_ratio=3.0, vec_in_dim=None,
    )  # fmt: skip


def _chroma(lab):
    from comfy.ldm.chroma.model import Chroma, ChromaParams

    known = {field.name for field in dataclasses.fields(ChromaParams)}
    newer = {name: value for name, value in _NEWER.items() if name in known}
    return Chroma(
        image_model="chroma", in_channels=16, out_channels=16, context_in_dim=64, hidden_size=128,
        mlp_ratio=4.0, num_heads=4, depth=1, depth_single_blocks=1, in_dim=64, out_dim=128,
        hidden_dim=128, n_layers=1, axes_dim=[8, 12, 12], theta=10000, patch_size=2,
        qkv_bias=True, **newer, **_options(),
    )  # fmt: skip


def _sd_3_5(lab):
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    context = {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}}
    return MMDiT(
        input_size=None, patch_size=2, in_channels=16, depth=2, adm_in_channels=32,
        context_embedder_config=context, pos_embed_max_size=16, num_patches=256, qk_norm="rms",
        x_block_self_attn_layers=[0], **_options(),
    )  # fmt: skip


def _qwen_image(lab):
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=1, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=64, pooled_projection_dim=32,
        axes_dims_rope=(8, 12, 12), image_model="qwen_image", **_options(),
    )  # fmt: skip


def _z_image(lab):
    from comfy.ldm.lumina.model import NextDiT

    return NextDiT(
        patch_size=2, in_channels=16, dim=128, n_layers=1, n_refiner_layers=1, n_heads=4,
        n_kv_heads=4, multiple_of=32, axes_dims=[8, 12, 12], axes_lens=[64, 64, 64], qk_norm=True,
        cap_feat_dim=64, z_image_modulation=True, image_model="lumina2", **_options(),
    )  # fmt: skip


def _diffusers_flux(lab):
    from diffusers import FluxTransformer2DModel

    config = lab.module("chunk_grpo_core.models.tiny.model").TRANSFORMER_CONFIG
    with torch.device("meta"):
        return FluxTransformer2DModel(**{**config, "num_layers": 1, "num_single_layers": 1})


BUILD = {
    "FLUX.1": _flux,
    "FLUX.1, quantised": lambda lab: quantised_model(lab).model.diffusion_model,
    "FLUX.2": _flux_2,
    "Chroma": _chroma,
    "SD3.5": _sd_3_5,
    "Qwen-Image": _qwen_image,
    "Z-Image": _z_image,
    "FLUX.1 of diffusers": _diffusers_flux,
}


def _taken(lab, model, targets):
    """Names of the layers without the number of their block."""
    pattern = lab.module("chunk_grpo_core.lora.targets").target_pattern(targets)
    names = lab.module("nodes.bridge.adapter")._linears(model)
    return {re.sub(r"^(\w+)\.\d+\.", r"\1.", name) for name in names if pattern.fullmatch(name)}


def _check_presets(lab, name):
    attention, mlp, rest = (set(words.split()) for words in LAYERS[name])
    model = BUILD[name](lab)
    assert _taken(lab, model, "attention") == attention
    assert _taken(lab, model, "attention+mlp") == attention | mlp
    assert _taken(lab, model, "all-linear") == attention | mlp | rest


def test_flux_1(lab):
    _check_presets(lab, "FLUX.1")


def test_quantised_layers_count(lab):
    _check_presets(lab, "FLUX.1, quantised")


def test_flux_2(lab):
    _check_presets(lab, "FLUX.2")


def test_chroma(lab):
    _check_presets(lab, "Chroma")


def test_sd_3_5(lab):
    _check_presets(lab, "SD3.5")


def test_qwen_image(lab):
    _check_presets(lab, "Qwen-Image")


def test_z_image(lab):
    _check_presets(lab, "Z-Image")


def test_flux_1_of_diffusers(lab):
    _check_presets(lab, "FLUX.1 of diffusers")


#: Architecture -> kinds of layers that only all-linear takes; attention+mlp takes all others.
_REST = {
    **dict.fromkeys(
        ("longcat", "schnell", "ovis", "hunyuan_image", "hunyuan_image_distilled"), _FLUX_MODULATION
    ),
    "krea2": "",
    "flux2_klein": "",
    "ernie": "",
    "anima": " ".join(
        f"blocks.adaln_modulation_{part}.{i}"
        for part in ("self_attn", "cross_attn", "mlp")
        for i in (1, 2)
    ),
    "ideogram4": "layers.adaln_modulation",
    "hidream": """double_stream_blocks.block.adaLN_modulation.1 caption_projection.linear
        single_stream_blocks.block.adaLN_modulation.1""",
    "lumina2": "noise_refiner.adaLN_modulation.1 layers.adaLN_modulation.1",
    "z_image_pixel": "noise_refiner.adaLN_modulation.0 layers.adaLN_modulation.0",
    "chroma_radiance": "nerf_blocks.param_generator",
    "omnigen2": "noise_refiner.norm1.linear ref_image_refiner.norm1.linear layers.norm1.linear",
    "boogu": """noise_refiner.norm1.linear ref_image_refiner.norm1.linear
        double_stream_layers.img_norm1.linear double_stream_layers.img_norm2.linear
        double_stream_layers.img_norm3.linear double_stream_layers.instruct_norm1.linear
        double_stream_layers.instruct_norm2.linear single_stream_layers.norm1.linear""",
    "kandinsky5": """text_transformer_blocks.text_modulation.out_layer
        visual_transformer_blocks.visual_modulation.out_layer""",
    "lens": "transformer_blocks.img_mod.1 transformer_blocks.txt_mod.1",
    "pixeldit": """patch_blocks.adaLN_modulation_img.0 patch_blocks.adaLN_modulation_txt.0
        pixel_blocks.compress_to_attn pixel_blocks.expand_from_attn
        pixel_blocks.adaLN_modulation_msa pixel_blocks.adaLN_modulation_mlp""",
    "auraflow": "double_layers.modC.1 double_layers.modX.1 single_layers.modCX.1",
}
_IS_ATTENTION = re.compile(r".*attn\d?\.|.*attention\.|single_blocks\.linear[12]")
_IS_MLP = re.compile(r".*(mlp[XC]?(_[xy])?|feed_forward|ff_[it])\.")


def test_no_other_architecture_has_a_layer_that_is_silently_missed(lab):
    assert _REST.keys() == models.OTHERS.keys()
    for name in filter(models.is_there, _REST):
        model = models.build(name).model.diffusion_model
        attention = _taken(lab, model, "attention")
        both, everything = _taken(lab, model, "attention+mlp"), _taken(lab, model, "all-linear")
        assert everything - both == set(_REST[name].split()), name
        assert attention and all(map(_IS_ATTENTION.match, attention)), name
        assert both - attention and all(map(_IS_MLP.match, both - attention)), name


def test_blocks_inside_a_part_of_the_model_are_found_where_there_are_no_others(lab):
    inner = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
    network = torch.nn.Module()
    network.language_model = torch.nn.Module()
    network.language_model.layers = inner
    assert lab.module("nodes.bridge.adapter").blocks(network) == list(inner)
    network.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    assert lab.module("nodes.bridge.adapter").blocks(network) == list(network.blocks)


def test_a_pattern_takes_what_it_matches(lab):
    qkv = _taken(lab, BUILD["SD3.5"](lab), r"joint_blocks\.\d+\.x_block\.attn2?\.qkv")
    assert qkv == {"joint_blocks.x_block.attn.qkv", "joint_blocks.x_block.attn2.qkv"}
