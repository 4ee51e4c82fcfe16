"""Weights of diffusers' models under the names that their makers' single files have.

Written out by hand, independently of diffusers' loaders.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]


def renamed(state: State, names: dict[str, str]) -> State:
    """Replace parts of names, in order."""
    out = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        out[name] = tensor.clone()
    return out


def fused(state: State, whole: str, pieces: tuple[str, ...]) -> State:
    """Join layers that the native model has as one."""
    out = dict(state)
    for name in state:
        if f".{pieces[0]}." in name:
            names = [name.replace(f".{pieces[0]}.", f".{piece}.") for piece in pieces]
            joined = torch.cat([out.pop(n) for n in names])
            out[name.replace(f".{pieces[0]}.", f".{whole}.")] = joined
    return out


def z_image(state: State) -> State:
    state = fused(state, "attention.qkv", tuple(f"attention.to_{q}" for q in "qkv"))
    names = {
        "all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1.": "x_embedder.",
        "attention.to_out.0.": "attention.out.", "attention.norm_q.": "attention.q_norm.",
        "attention.norm_k.": "attention.k_norm.",
    }  # fmt: skip
    return renamed(state, names)


def sd3(state: State) -> State:
    def swapped(tensor: Tensor) -> Tensor:
        return torch.cat(tensor.chunk(2)[::-1])

    last = max(int(n.split(".")[1]) for n in state if n.startswith("transformer_blocks."))
    for end in ("weight", "bias"):
        for name in ("norm_out", f"transformer_blocks.{last}.norm1_context"):
            state[f"{name}.linear.{end}"] = swapped(state[f"{name}.linear.{end}"])
    for attn in ("attn", "attn2"):
        state = fused(state, f"x_block.{attn}.qkv", tuple(f"{attn}.to_{q}" for q in "qkv"))
    state = fused(state, "context_block.attn.qkv", tuple(f"attn.add_{q}_proj" for q in "qkv"))
    names = {
        "pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        ".x_block.attn.qkv": ".x_block.attn.QKV", ".attn2.to_out.0": ".x_block.attn2.proj",
        ".attn2.norm_q": ".x_block.attn2.ln_q", ".attn2.norm_k": ".x_block.attn2.ln_k",
        ".attn.to_out.0": ".x_block.attn.proj", ".attn.norm_q": ".x_block.attn.ln_q",
        ".attn.norm_k": ".x_block.attn.ln_k", ".attn.norm_added_q": ".context_block.attn.ln_q",
        ".attn.norm_added_k": ".context_block.attn.ln_k",
        ".attn.to_add_out": ".context_block.attn.proj", "QKV": "qkv",
        ".norm1_context.linear": ".context_block.adaLN_modulation.1",
        ".norm1.linear": ".x_block.adaLN_modulation.1",
        ".ff_context.net.0.proj": ".context_block.mlp.fc1",
        ".ff_context.net.2": ".context_block.mlp.fc2",
        ".ff.net.0.proj": ".x_block.mlp.fc1", ".ff.net.2": ".x_block.mlp.fc2",
        "transformer_blocks.": "joint_blocks.",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }  # fmt: skip
    state = renamed(state, names)
    for end in ("weight", "bias"):
        state[f"final_layer.linear.{end}"] = state.pop(f"proj_out.{end}")
    return {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}


def flux2(state: State) -> State:
    state["norm_out.linear.weight"] = torch.cat(state["norm_out.linear.weight"].chunk(2)[::-1])
    state = fused(state, "img_attn.qkv", tuple(f"attn.to_{q}" for q in "qkv"))
    state = fused(state, "txt_attn.qkv", tuple(f"attn.add_{q}_proj" for q in "qkv"))
    names = {
        "single_transformer_blocks.": "single_blocks.", "transformer_blocks.": "double_blocks.",
        "norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear",
        "context_embedder": "txt_in", "x_embedder": "img_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "modulation_img.linear": "modulation_img.lin",
        "modulation_txt.linear": "modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
        "ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2",
        "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
        "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
        "attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2",
    }  # fmt: skip
    out = {}
    for name, tensor in renamed(state, names).items():
        where = "" if name.startswith("single") else "img_attn."
        for q, long in (("q", "query"), ("k", "key")):
            name = name.replace(f"attn.norm_{q}.weight", f"{where}norm.{long}_norm.scale")
        out[name] = tensor
    return out


def qwen_image(state: State) -> State:
    return renamed(state, {"": ""})


def qwen_image_21(state: State) -> State:
    return fused(state, "img_mlp.gate_up", ("img_mlp.gate_layer", "img_mlp.proj"))


def krea2(state: State) -> State:
    names = {
        "transformer_blocks.": "blocks.", "text_fusion.": "txtfusion.", "img_in.": "first.",
        "time_embed.linear_1.": "tmlp.0.", "time_embed.linear_2.": "tmlp.2.",
        "time_mod_proj.": "tproj.1.", "txt_in.norm.weight": "txtmlp.0.scale",
        "txt_in.linear_1.": "txtmlp.1.", "txt_in.linear_2.": "txtmlp.3.",
        "final_layer.linear.": "last.linear.", "final_layer.norm.weight": "last.norm.scale",
        "final_layer.scale_shift_table": "last.modulation.lin",
        ".attn.to_q.": ".attn.wq.", ".attn.to_k.": ".attn.wk.", ".attn.to_v.": ".attn.wv.",
        ".attn.to_out.0.": ".attn.wo.", ".attn.to_gate.": ".attn.gate.",
        ".attn.norm_q.weight": ".attn.qknorm.qnorm.scale",
        ".attn.norm_k.weight": ".attn.qknorm.knorm.scale", ".ff.": ".mlp.",
        ".norm1.weight": ".prenorm.scale", ".norm2.weight": ".postnorm.scale",
        ".scale_shift_table": ".mod.lin",
    }  # fmt: skip
    state = renamed(state, names)
    return {n: t.flatten() if n.endswith(".mod.lin") else t for n, t in state.items()}


def lumina2(state: State) -> State:
    names = {
        "norm_out.linear_1": "final_layer.adaLN_modulation.1",
        "norm_out.linear_2": "final_layer.linear",
        "time_caption_embed.caption_embedder": "cap_embedder",
        "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        ".norm1.linear": ".adaLN_modulation.1", ".norm1.norm.": ".attention_norm1.",
        ".ffn_norm1.": ".FFN1.", ".ffn_norm2.": ".FFN2.",
        ".norm1.": ".attention_norm1.", ".norm2.": ".attention_norm2.",
        ".FFN1.": ".ffn_norm1.", ".FFN2.": ".ffn_norm2.",
        ".attn.to_out.0.": ".attention.out.", ".attn.norm_q.": ".attention.q_norm.",
        ".attn.norm_k.": ".attention.k_norm.", ".attn.": ".attention.",
        "feed_forward.linear_": "feed_forward.w",
    }  # fmt: skip
    return renamed(fused(state, "attn.qkv", tuple(f"attn.to_{q}" for q in "qkv")), names)


NATIVE: dict[str, Callable[[State], State]] = {
    "z-image": z_image,
    "sd3": sd3,
    "flux2": flux2,
    "flux2-klein": flux2,
    "qwen-image": qwen_image,
    "qwen-image-2.1": qwen_image_21,
    "krea2": krea2,
    "lumina2": lumina2,
    "hidream": dict,
}
"""Family -> diffusers' weights under native names."""
