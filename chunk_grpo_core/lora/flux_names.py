"""FLUX.1's layers under ComfyUI's names and under diffusers' names.

ComfyUI fuses what diffusers splits: ``qkv`` is ``to_q``, ``to_k``, ``to_v`` stacked by rows, and
``linear1`` of a single block holds ``proj_mlp`` below these three.

The name table is our own: inverting ComfyUI's would name some weights twice, and ComfyUI would
then apply them twice without a word.

Legend: r rank, h hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from .layers import Layout, LoraLayer, Piece, fused

__all__ = [
    "LAST_MODULATION",
    "OUTSIDE",
    "block_pieces",
    "diffusers_to_native",
    "flux_modules",
    "is_block_layer",
    "native_to_diffusers",
]

_Layers = Mapping[str, LoraLayer]

#: Native leaf -> [(diffusers leaf, first row, number of rows)], rows in units of h.
_DOUBLE = {
    "img_mod.lin": [("norm1.linear", 0, 6)],
    "txt_mod.lin": [("norm1_context.linear", 0, 6)],
    "img_attn.qkv": [("attn.to_q", 0, 1), ("attn.to_k", 1, 1), ("attn.to_v", 2, 1)],
    "txt_attn.qkv": [
        ("attn.add_q_proj", 0, 1),
        ("attn.add_k_proj", 1, 1),
        ("attn.add_v_proj", 2, 1),
    ],
    "img_attn.proj": [("attn.to_out.0", 0, 1)],
    "txt_attn.proj": [("attn.to_add_out", 0, 1)],
    "img_mlp.0": [("ff.net.0.proj", 0, 4)],
    "img_mlp.2": [("ff.net.2", 0, 1)],
    "txt_mlp.0": [("ff_context.net.0.proj", 0, 4)],
    "txt_mlp.2": [("ff_context.net.2", 0, 1)],
}
_SINGLE = {
    "modulation.lin": [("norm.linear", 0, 3)],
    "linear1": [
        ("attn.to_q", 0, 1),
        ("attn.to_k", 1, 1),
        ("attn.to_v", 2, 1),
        ("proj_mlp", 3, 4),
    ],
    "linear2": [("proj_out", 0, 1)],
}
#: Width of a layer's input in units of h, where it is not 1.
_INPUTS = {"img_mlp.2": 4, "txt_mlp.2": 4, "linear2": 5}
#: Native name of a list of blocks -> its diffusers name, its length in FLUX.1, its table.
_BLOCKS = {
    "double_blocks": ("transformer_blocks", 19, _DOUBLE),
    "single_blocks": ("single_transformer_blocks", 38, _SINGLE),
}
OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
"""Native names of the layers outside of blocks -> their diffusers names."""
LAST_MODULATION = ("final_layer.adaLN_modulation.1", "norm_out.linear")
"""Native and diffusers name of the one layer whose rows stand in another order: (shift, scale) and
(scale, shift)."""
_OUTSIDE_NATIVE = {diffusers: native for native, diffusers in OUTSIDE.items()}
#: Diffusers names of a list of blocks and of a leaf -> the native ones.
_NATIVE = {
    (blocks, piece): (native, leaf)
    for native, (blocks, _, table) in _BLOCKS.items()
    for leaf, pieces in table.items()
    for piece, _, _ in pieces
}


def block_pieces(module: str) -> list[tuple[str, int, int]]:
    """Name the diffusers layers that one native layer of a block consists of.

    Returns:
        Name, first row and number of rows of each, rows in units of h; empty for other layers.
    """
    kind, index, leaf = _split(module)
    if kind not in _BLOCKS:
        return []
    blocks, _, table = _BLOCKS[kind]
    return [(f"{blocks}.{index}.{name}", a, count) for name, a, count in table.get(leaf, [])]


@cache
def flux_modules() -> Mapping[str, tuple[Layout, str]]:
    """Every layer of FLUX.1, by its names in both layouts, with dots or with underscores for them.

    Returns:
        Name -> layout, and the name with dots.
    """
    names: list[tuple[Layout, str]] = []
    for native, (diffusers, count, table) in _BLOCKS.items():
        pieces = dict.fromkeys(piece for group in table.values() for piece, _, _ in group)
        for index in range(count):
            names.extend(("native", f"{native}.{index}.{leaf}") for leaf in table)
            names.extend(("diffusers", f"{diffusers}.{index}.{piece}") for piece in pieces)
    for native, diffusers in (*OUTSIDE.items(), LAST_MODULATION):
        names.extend((("native", native), ("diffusers", diffusers)))
    return {
        spelling: (layout, name)
        for layout, name in names
        for spelling in (name, name.replace(".", "_"))
    }


def is_block_layer(module: str) -> bool:
    """Whether a native name is that of a layer in a block, of FLUX.1 or of a longer model."""
    kind, index, leaf = _split(module)
    return kind in _BLOCKS and index.isdecimal() and leaf in _BLOCKS[kind][2]


def native_to_diffusers(layers: _Layers) -> dict[str, LoraLayer]:
    """Rename a FLUX.1 LoRA for diffusers; fused layers are cut, exactly.

    The pieces of a fused layer share its A and take their rows of B. Where they use different
    columns of B, as after :func:`diffusers_to_native`, each takes its own columns only.

    Args:
        layers: Native module name, one of :func:`flux_modules` -> layer.

    Raises:
        ValueError: A layer has not the shape of FLUX.1's.
    """
    out: dict[str, LoraLayer] = {}
    for module, layer in layers.items():
        if module in OUTSIDE:
            out[OUTSIDE[module]] = layer
            continue
        if module == LAST_MODULATION[0]:
            out[LAST_MODULATION[1]] = _halves_swapped(layer)
            continue
        kind, index, leaf = _split(module)
        blocks, _, table = _BLOCKS[kind]
        pieces = table[leaf]
        total = sum(rows for _, _, rows in pieces)
        unit = _unit(module, layer, total, _INPUTS.get(leaf, 1))
        rows = {
            f"{blocks}.{index}.{piece}": layer.b[first * unit : (first + count) * unit]
            for piece, first, count in pieces
        }
        out |= _cut(layer, rows)
    return out


def diffusers_to_native(layers: _Layers) -> dict[str, LoraLayer]:
    """Rename a FLUX.1 LoRA for ComfyUI; split layers are fused, exactly.

    Pieces with one and the same A give a layer of their rank. Others give a block-diagonal B, whose
    rank is the sum of theirs.

    Args:
        layers: diffusers module name, one of :func:`flux_modules` -> layer.

    Raises:
        ValueError: A layer has not the shape of FLUX.1's.
    """
    groups: dict[str, dict[str, LoraLayer]] = {}
    out: dict[str, LoraLayer] = {}
    for module, layer in layers.items():
        if module in _OUTSIDE_NATIVE:
            out[_OUTSIDE_NATIVE[module]] = layer
            continue
        if module == LAST_MODULATION[1]:
            out[LAST_MODULATION[0]] = _halves_swapped(layer)
            continue
        blocks, index, piece = _split(module)
        kind, leaf = _NATIVE[blocks, piece]
        groups.setdefault(f"{kind}.{index}.{leaf}", {})[piece] = layer
    for module, by_piece in groups.items():
        kind, _, leaf = _split(module)
        pieces = _BLOCKS[kind][2][leaf]
        inputs = _INPUTS.get(leaf, 1)
        units = {_unit(module, by_piece[p], n, inputs) for p, _, n in pieces if p in by_piece}
        if len(units) > 1:
            raise _not_flux(f"the pieces of {module} have different widths")
        unit = units.pop()
        out[module] = fused(
            [
                Piece(layer=by_piece[p], first=first * unit)
                for p, first, _ in pieces
                if p in by_piece
            ],
            unit * sum(count for _, _, count in pieces),
        )
    return out


def _cut(layer: LoraLayer, rows: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """Give every piece its rows of B, and only its own columns where no two pieces share one."""
    used = {name: (b != 0).any(dim=0) for name, b in rows.items()}
    if len(rows) == 1 or int(torch.stack(list(used.values())).sum(dim=0).max()) != 1:
        return {name: replace(layer, b=b) for name, b in rows.items()}
    return {
        name: LoraLayer(
            a=layer.a[columns], b=rows[name][:, columns], alpha=layer.scale * int(columns.sum())
        )
        for name, columns in used.items()
        if columns.any()
    }


def _halves_swapped(layer: LoraLayer) -> LoraLayer:
    if layer.b.shape[0] % 2:
        raise _not_flux(f"{LAST_MODULATION[0]} has an odd number of outputs")
    return replace(layer, b=torch.cat(layer.b.chunk(2)[::-1]))


def _split(module: str) -> tuple[str, str, str]:
    """``double_blocks.3.img_attn.qkv`` -> ``double_blocks``, ``3``, ``img_attn.qkv``."""
    kind, index, leaf = (module.split(".", 2) + ["", ""])[:3]
    return kind, index, leaf


def _unit(module: str, layer: LoraLayer, rows: int, inputs: int) -> int:
    """Return h as this layer has it; check that both its sides agree."""
    unit = layer.b.shape[0] // rows
    if layer.b.shape[0] != unit * rows or layer.a.shape[1] != unit * inputs:
        raise _not_flux(
            f"{module} maps {layer.a.shape[1]} to {layer.b.shape[0]} numbers, which is not "
            "FLUX.1's shape"
        )
    return unit


def _not_flux(reason: str) -> ValueError:
    return ValueError(f"{reason}; only FLUX.1 LoRAs have names in both layouts")
