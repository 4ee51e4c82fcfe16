"""CLIP weights in the names of transformers, whichever of the two layouts a file has.

open_clip's layout (HPSv2 and many others) keeps query, key and value in one matrix, and its
projections transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["transformers_names"]

_WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",  # spelt so in transformers
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a CLIP model as ``CLIPModel`` of transformers has them.

    Tensors that are already named so stay; tables of positions and open_clip's causal mask, which
    hold nothing learned, are dropped; what is unknown keeps its name and makes loading fail.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("position_ids") or name == "attn_mask":
            continue
        block = _BLOCK.fullmatch(name)
        if block:
            tower = "vision_model" if block[1] else "text_model"
            renamed |= _block(f"{tower}.encoder.layers.{block[2]}", block[3], tensor)
        elif name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = tensor.T
        elif name in _WHOLE:
            renamed[_WHOLE[name]] = tensor
        else:
            stem, _, kind = name.rpartition(".")
            renamed[f"{_NORMS[stem]}.{kind}" if stem in _NORMS else name] = tensor
    return renamed


def _block(layer: str, inner: str, tensor: Tensor) -> dict[str, Tensor]:
    """Rename what is inside a block of a tower."""
    if inner in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = inner.rpartition("_")[2]
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}.self_attn.{which}_proj.{kind}": part for which, part in thirds}
    stem, _, kind = inner.rpartition(".")
    return {f"{layer}.{_IN_BLOCK.get(stem, stem)}.{kind}": tensor}
