"""The tables of the families whose LoRAs have names in both layouts."""

from __future__ import annotations

from collections.abc import Mapping

from .name_table import Blocks, Leaf, NameTable, same, stacked, whole

__all__ = ["FAMILIES", "FLUX1", "TABLES"]

_IMAGE_QKV = stacked("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT_QKV = stacked("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_DOUBLE_ATTENTION = {
    "img_attn.qkv": _IMAGE_QKV,
    "txt_attn.qkv": _TEXT_QKV,
    "img_attn.proj": whole("attn.to_out.0"),
    "txt_attn.proj": whole("attn.to_add_out"),
}
_EMBEDDER = "time_text_embed.timestep_embedder.linear_"
_POOLED = "time_text_embed.text_embedder.linear_"

FLUX1 = NameTable(
    title="FLUX.1",
    blocks=(
        Blocks(
            "double_blocks",
            "transformer_blocks",
            {
                **_DOUBLE_ATTENTION,
                "img_mod.lin": whole("norm1.linear", rows=6),
                "txt_mod.lin": whole("norm1_context.linear", rows=6),
                "img_mlp.0": whole("ff.net.0.proj", rows=4),
                "img_mlp.2": whole("ff.net.2", inputs=4),
                "txt_mlp.0": whole("ff_context.net.0.proj", rows=4),
                "txt_mlp.2": whole("ff_context.net.2", inputs=4),
            },
            most=19,
        ),
        Blocks(
            "single_blocks",
            "single_transformer_blocks",
            {
                "modulation.lin": whole("norm.linear", rows=3),
                "linear1": Leaf((*_IMAGE_QKV.pieces, ("proj_mlp", 3, 4))),
                "linear2": whole("proj_out", inputs=5),
            },
            most=38,
        ),
        Blocks(
            "distilled_guidance_layer.layers",
            "distilled_guidance_layer.layers",
            {
                "in_layer": whole("linear_1", inputs=None),
                "out_layer": whole("linear_2", inputs=None),
            },
            most=5,
        ),
    ),
    outside={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "distilled_guidance_layer.in_proj": "distilled_guidance_layer.in_proj",
        "distilled_guidance_layer.out_proj": "distilled_guidance_layer.out_proj",
        "time_in.in_layer": f"{_EMBEDDER}1",
        "time_in.out_layer": f"{_EMBEDDER}2",
        "vector_in.in_layer": f"{_POOLED}1",
        "vector_in.out_layer": f"{_POOLED}2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.linear": "proj_out",
    },
    turned={"final_layer.adaLN_modulation.1": "norm_out.linear"},
    omi={"img_in.proj": "img_in"},
)
"""FLUX.1 and Chroma, which has another modulation."""

_FLUX2 = NameTable(
    title="FLUX.2",
    blocks=(
        Blocks(
            "double_blocks",
            "transformer_blocks",
            {
                **_DOUBLE_ATTENTION,
                "img_mlp.0": whole("ff.linear_in", rows=6),
                "img_mlp.2": whole("ff.linear_out", inputs=3),
                "txt_mlp.0": whole("ff_context.linear_in", rows=6),
                "txt_mlp.2": whole("ff_context.linear_out", inputs=3),
            },
            most=8,
        ),
        Blocks(
            "single_blocks",
            "single_transformer_blocks",
            {
                "linear1": whole("attn.to_qkv_mlp_proj", rows=9),
                "linear2": whole("attn.to_out", inputs=4),
            },
            most=48,
        ),
    ),
    outside={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        "final_layer.linear": "proj_out",
    },
    turned={"final_layer.adaLN_modulation.1": "norm_out.linear"},
)

_SD3 = NameTable(
    title="Stable Diffusion 3.5",
    blocks=(
        Blocks(
            "joint_blocks",
            "transformer_blocks",
            {
                "x_block.attn.qkv": _IMAGE_QKV,
                "x_block.attn2.qkv": stacked("attn2.to_q", "attn2.to_k", "attn2.to_v"),
                "context_block.attn.qkv": _TEXT_QKV,
                "x_block.attn.proj": whole("attn.to_out.0"),
                "x_block.attn2.proj": whole("attn2.to_out.0"),
                "context_block.attn.proj": whole("attn.to_add_out"),
                "x_block.mlp.fc1": whole("ff.net.0.proj", rows=4),
                "x_block.mlp.fc2": whole("ff.net.2", inputs=4),
                "context_block.mlp.fc1": whole("ff_context.net.0.proj", rows=4),
                "context_block.mlp.fc2": whole("ff_context.net.2", inputs=4),
                # 9 h with a second attention, 6 h without; 2 h, turned, in the last block.
                "x_block.adaLN_modulation.1": whole("norm1.linear", inputs=None),
                "context_block.adaLN_modulation.1": whole(
                    "norm1_context.linear", inputs=None, turns=True
                ),
            },
            most=38,
        ),
    ),
    outside={
        "context_embedder": "context_embedder",
        "t_embedder.mlp.0": f"{_EMBEDDER}1",
        "t_embedder.mlp.2": f"{_EMBEDDER}2",
        "y_embedder.mlp.0": f"{_POOLED}1",
        "y_embedder.mlp.2": f"{_POOLED}2",
        "final_layer.linear": "proj_out",
    },
    turned={"final_layer.adaLN_modulation.1": "norm_out.linear"},
)

_Z_IMAGE = NameTable(
    title="Z-Image",
    blocks=tuple(
        Blocks(
            name,
            name,
            {
                "attention.qkv": stacked("attention.to_q", "attention.to_k", "attention.to_v"),
                "attention.out": whole("attention.to_out.0"),
                **same("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
                **same("adaLN_modulation.0"),
            },
            most,
        )
        for name, most in (("layers", 30), ("noise_refiner", 2), ("context_refiner", 2))
    ),
    outside={
        "x_embedder": "all_x_embedder.2-1",
        "cap_embedder.1": "cap_embedder.1",
        "t_embedder.mlp.0": "t_embedder.mlp.0",
        "t_embedder.mlp.2": "t_embedder.mlp.2",
        "final_layer.linear": "all_final_layer.2-1.linear",
        "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    },
)

_KREA2 = NameTable(
    title="Krea 2",
    blocks=tuple(
        Blocks(
            native,
            diffusers,
            {
                native_leaf: whole(leaf, inputs=None)
                for native_leaf, leaf in {
                    "attn.wq": "attn.to_q",
                    "attn.wk": "attn.to_k",
                    "attn.wv": "attn.to_v",
                    "attn.wo": "attn.to_out.0",
                    "attn.gate": "attn.to_gate",
                    "mlp.gate": "ff.gate",
                    "mlp.up": "ff.up",
                    "mlp.down": "ff.down",
                }.items()
            },
            most,
        )
        for native, diffusers, most in (
            ("blocks", "transformer_blocks", 28),
            ("txtfusion.layerwise_blocks", "text_fusion.layerwise_blocks", 2),
            ("txtfusion.refiner_blocks", "text_fusion.refiner_blocks", 2),
        )
    ),
    outside={
        "first": "img_in",
        "tmlp.0": "time_embed.linear_1",
        "tmlp.2": "time_embed.linear_2",
        "tproj.1": "time_mod_proj",
        "txtmlp.1": "txt_in.linear_1",
        "txtmlp.3": "txt_in.linear_2",
        "txtfusion.projector": "text_fusion.projector",
        "last.linear": "final_layer.linear",
    },
)

_QWEN_IMAGE = NameTable(
    title="Qwen-Image",
    blocks=(
        Blocks(
            "transformer_blocks",
            "transformer_blocks",
            same(
                *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
                *(f"attn.add_{letter}_proj" for letter in "qkv"),
                *(f"{side}_mod.1" for side in ("img", "txt")),
                *(f"{side}_mlp.net.{n}" for side in ("img", "txt") for n in ("0.proj", "2")),
            ),
            most=60,
        ),
    ),
    outside={
        name: name for name in ("img_in", "txt_in", f"{_EMBEDDER}1", f"{_EMBEDDER}2", "proj_out")
    }
    | {"norm_out.linear": "norm_out.linear"},
)

_LUMINA2 = NameTable(
    title="Lumina 2",
    blocks=tuple(
        Blocks(
            name,
            name,
            {
                # In units of h / 3: 24 heads of queries share 8 of keys and values.
                "attention.qkv": Leaf(
                    (("attn.to_q", 0, 3), ("attn.to_k", 3, 1), ("attn.to_v", 4, 1)), inputs=3
                ),
                "attention.out": whole("attn.to_out.0"),
                **{
                    f"feed_forward.w{number}": whole(f"feed_forward.linear_{number}", inputs=None)
                    for number in (1, 2, 3)
                },
                "adaLN_modulation.1": whole("norm1.linear", inputs=None),
            },
            most,
        )
        for name, most in (("layers", 26), ("noise_refiner", 2), ("context_refiner", 2))
    ),
    outside={
        "x_embedder": "x_embedder",
        "cap_embedder.1": "time_caption_embed.caption_embedder.1",
        "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
        "final_layer.linear": "norm_out.linear_2",
        "final_layer.adaLN_modulation.1": "norm_out.linear_1",
    },
)

_EXPERTS = ("shared_experts", *(f"experts.{number}" for number in range(4)))
_HIDREAM = NameTable(
    title="HiDream-I1",
    blocks=(
        *(
            Blocks(
                name,
                name,
                same(
                    "block.adaLN_modulation.1",
                    *(
                        f"block.attn1.to_{part}{side}"
                        for part in ("q", "k", "v", "out")
                        for side in ("", "_t")
                    ),
                    *(f"block.ff_i.{part}.w{n}" for part in _EXPERTS for n in (1, 2, 3)),
                    *(f"block.ff_{side}.w{n}" for side in "it" for n in (1, 2, 3)),
                ),
                most,
            )
            for name, most in (("double_stream_blocks", 16), ("single_stream_blocks", 32))
        ),
        Blocks("caption_projection", "caption_projection", same("linear"), most=49),
    ),
    outside={
        name: name
        for name in (
            "x_embedder.proj",
            *(f"t_embedder.timestep_embedder.linear_{n}" for n in (1, 2)),
            *(f"p_embedder.pooled_embedder.linear_{n}" for n in (1, 2)),
            "final_layer.linear",
            "final_layer.adaLN_modulation.1",
        )
    },
)

TABLES = (FLUX1, _FLUX2, _SD3, _QWEN_IMAGE, _Z_IMAGE, _KREA2, _LUMINA2, _HIDREAM)
"""Every table once."""

FAMILIES: Mapping[str, NameTable] = {
    "flux": FLUX1,
    "chroma": FLUX1,
    "flux2": _FLUX2,
    "flux2-klein": _FLUX2,
    "sd3": _SD3,
    "qwen-image": _QWEN_IMAGE,
    "z-image": _Z_IMAGE,
    "krea2": _KREA2,
    "lumina2": _LUMINA2,
    "hidream": _HIDREAM,
}
"""Name of a family, as ``model.type`` has it where the command line trains it -> its table."""
