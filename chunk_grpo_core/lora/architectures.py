"""Which architecture a LoRA is probably for, told by the names of its layers; for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["likely_architecture", "some_names"]

#: Whose layers are named so, with underscores for dots; the first that matches counts.
_NAMES = (
    ("SDXL or SD 1.5", r"(down|up|mid|input|output|middle)_blocks?_"),
    ("Qwen-Image", r"transformer_blocks_\d+_(img|txt)_(mlp|mod)_"),
    ("SD3", r"joint_blocks_\d+_|transformer_blocks_\d+_attn2_to_(q|k|v)$"),
    (
        "FLUX.2",
        r"(double_stream|single_stream)_modulation|single_transformer_blocks_\d+_attn_to_qkv",
    ),
    ("FLUX.1", r"(double|single)_blocks_\d+_|single_transformer_blocks_\d+_"),
    ("FLUX.1 or SD3", r"transformer_blocks_\d+_(ff_context|norm1_context)_"),
    ("PixArt or LTX-Video", r"transformer_blocks_\d+_attn[12]_"),
    ("AuraFlow", r"(joint|single)_transformer_blocks?_|joint_transformer_blocks_"),
    ("Wan", r"blocks_\d+_(self|cross)_attn_|blocks_\d+_ffn_"),
    ("Z-Image or Lumina", r"(layers|context_refiner|noise_refiner)_\d+_(attention|feed_forward)"),
    ("a text encoder", r"(text_model|encoder)_(encoder_layers|block)_\d+"),
)


def likely_architecture(modules: Iterable[str]) -> str | None:
    """Name the architecture that most of these layers point to; None if nothing does."""
    votes: dict[str, int] = {}
    for module in modules:
        flat = module.replace(".", "_")
        name = next((name for name, pattern in _NAMES if re.match(pattern, flat)), None)
        if name is not None:
            votes[name] = votes.get(name, 0) + 1
    return max(votes, key=lambda name: votes[name]) if votes else None


def some_names(modules: Iterable[str], count: int = 3) -> str:
    """The first few names, in order of the alphabet, and how many more there are."""
    names = sorted(modules)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
