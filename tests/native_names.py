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


NATIVE: dict[str, Callable[[State], State]] = {
    "z-image": z_image,
    "sd3": sd3,
}
"""Family -> diffusers' weights under native names."""
