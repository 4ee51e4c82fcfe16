"""Which layers a LoRA is put beside: names that users choose from, and regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..settings.declared import shortened

__all__ = ["TARGET_PRESETS", "layer_kinds", "target_pattern"]

_LAYERS = (
    # Architecture in ComfyUI; attention; MLP. Names inside a block, the number of which stands
    # before them. Fused layers (FLUX's linear1 and linear2) count as attention.
    (
        "FLUX.1, FLUX.2, Chroma, LongCat, HunyuanImage",
        r"(img|txt)_attn\.(qkv|proj)|linear[12]",
        r"(img|txt)_mlp\.([02]|fc[12]|gate_proj|up_proj|down_proj)",
    ),
    (
        "Qwen-Image, and FLUX.1 of diffusers",
        r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
        r"ff(_context)?\.net\.(0\.proj|2)|(img|txt)_mlp\.net\.(0\.proj|2)|proj_mlp|proj_out",
    ),
    (
        "SD3",
        r"(x|context)_block\.attn2?\.(qkv|proj)",
        r"(x|context)_block\.mlp\.fc[12]",
    ),
    ("Z-Image, Lumina 2, Ideogram 4", r"attention\.(qkv|out|o)", r"feed_forward\.w[123]"),
    ("Krea 2", r"attn\.(w[qkvo]|gate)", r"mlp\.(gate|up|down)"),
    (
        "Anima, Cosmos Predict 2",
        r"(self|cross)_attn\.([qkv]_proj|output_proj)",
        r"mlp\.layer[12]",
    ),
    (
        "Ernie-Image",
        r"self_attention\.(to_[qkv]|to_out\.0)",
        r"mlp\.(gate_proj|up_proj|linear_fc2)",
    ),
    (
        "HiDream-I1",
        r"block\.attn1\.to_(q|k|v|out)(_t)?",
        r"block\.ff_i\.(experts\.\d+|shared_experts)\.w[123]|block\.ff_t\.w[123]",
    ),
    (
        "Kandinsky 5",
        r"(self|cross)_attention\.(to_(query|key|value)|out_layer)",
        r"feed_forward\.(in|out)_layer",
    ),
    ("Lens", r"attn\.((img|txt)_qkv|to_out\.0|to_add_out)", r"(img|txt)_mlp\.w[123]"),
    (
        "OmniGen 2, Boogu",
        r"attn\.(to_[qkv]|to_out\.0)|img_self_attn\.(to_[qkv]|to_out\.0)"
        r"|img_instruct_attn\.(to_out\.0|processor\.(img|instruct)_(to_[qkv]|out))",
        r"((img|instruct)_)?feed_forward\.linear_[123]",
    ),
    (
        "PixelDiT",
        r"attn\.(qkv|proj)(_[xy])?",
        r"mlp_[xy]\.w[123]|mlp\.fc[12]",
    ),
    ("AuraFlow", r"attn\.w[12][qkvo]", r"mlp[XC]?\.c_(fc1|fc2|proj)"),
)

_IN_BLOCK = r"\w+\.\d+\."
_ATTENTION = "|".join(attention for _, attention, _ in _LAYERS)
_MLP = "|".join(mlp for _, _, mlp in _LAYERS)

TARGET_PRESETS = {
    "attention": f"{_IN_BLOCK}(?:{_ATTENTION})",
    "attention+mlp": f"{_IN_BLOCK}(?:{_ATTENTION}|{_MLP})",
    "all-linear": r"(\w+\.)+\d+\..+",
}
"""Names users choose from -> regular expression over whole module names of ComfyUI's native models.
``all-linear`` takes every layer of every repeated block, so it fits models that are newer than this
table. A family of diffusers models has its own expressions under the same names (``models/``)."""


def target_pattern(targets: str, presets: Mapping[str, str] = TARGET_PRESETS) -> re.Pattern[str]:
    """Compile a preset name or a regular expression.

    Args:
        targets: What the user wrote.
        presets: Preset name -> regular expression over whole module names of the model.

    Raises:
        ValueError: Neither a preset nor a valid expression.
    """
    try:
        return re.compile(presets.get(targets, targets))
    except re.error as error:
        raise ValueError(
            f"lora.targets is {shortened(targets)}: not one of {', '.join(presets)}, "
            f"and not a regular expression ({error})"
        ) from error


def layer_kinds(names: Iterable[str]) -> list[str]:
    """Names of layers without the numbers of their blocks, each once, in the order given."""
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", "", name) for name in names))
