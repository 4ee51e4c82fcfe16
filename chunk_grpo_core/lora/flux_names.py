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

import torch
from torch import Tensor

from .layers import LoraLayer

__all__ = ["block_pieces", "diffusers_to_native", "native_to_diffusers"]

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


def native_to_diffusers(layers: _Layers) -> dict[str, LoraLayer]:
    """Rename a FLUX.1 LoRA for diffusers; fused layers are cut, exactly.

    The pieces of a fused layer share its A and take their rows of B. Where they use different
    columns of B, as after :func:`diffusers_to_native`, each takes its own columns only.

    Args:
        layers: Native module name -> layer.

    Raises:
        ValueError: A module is not one of FLUX.1's block layers.
    """
    out: dict[str, LoraLayer] = {}
    for module, layer in layers.items():
        kind, index, leaf = _split(module)
        if kind not in _BLOCKS or leaf not in _BLOCKS[kind][2]:
            raise ValueError(f"{module} is not a block layer of FLUX.1 and has no diffusers name")
        blocks, _, table = _BLOCKS[kind]
        _check_index(module, kind, index)
        total = sum(rows for _, _, rows in table[leaf])
        unit = _unit(module, layer, total, _INPUTS.get(leaf, 1))
        rows = {
            f"{blocks}.{index}.{piece}": layer.b[first * unit : (first + count) * unit]
            for piece, first, count in table[leaf]
        }
        out |= _cut(layer, rows)
    return out


def diffusers_to_native(layers: _Layers) -> dict[str, LoraLayer]:
    """Rename a FLUX.1 LoRA for ComfyUI; split layers are fused, exactly.

    Pieces with one and the same A give a layer of their rank. Others give a block-diagonal B, whose
    rank is the sum of theirs.

    Args:
        layers: diffusers module name -> layer.

    Raises:
        ValueError: A module is not one of FLUX.1's block layers.
    """
    groups: dict[str, dict[str, LoraLayer]] = {}
    for module, layer in layers.items():
        blocks, index, piece = _split(module)
        if (blocks, piece) not in _NATIVE:
            raise ValueError(f"{module} is not a block layer of FLUX.1 and has no native name")
        kind, leaf = _NATIVE[blocks, piece]
        _check_index(module, kind, index)
        groups.setdefault(f"{kind}.{index}.{leaf}", {})[piece] = layer
    out: dict[str, LoraLayer] = {}
    for module, by_piece in groups.items():
        kind, _, leaf = _split(module)
        pieces = _BLOCKS[kind][2][leaf]
        inputs = _INPUTS.get(leaf, 1)
        units = {_unit(module, by_piece[p], n, inputs) for p, _, n in pieces if p in by_piece}
        if len(units) > 1:
            raise _not_flux(f"the pieces of {module} have different widths")
        out[module] = _fuse(by_piece, pieces, units.pop())
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


def _fuse(
    by_piece: Mapping[str, LoraLayer], pieces: list[tuple[str, int, int]], unit: int
) -> LoraLayer:
    """Stack the pieces of one layer by rows; rows of a missing piece are 0."""
    if len({layer.scale for layer in by_piece.values()}) > 1:
        by_piece = {piece: layer.folded() for piece, layer in by_piece.items()}
    layers = [by_piece[piece] for piece, _, _ in pieces if piece in by_piece]
    first = layers[0]
    if len(layers) == len(pieces) and all(torch.equal(layer.a, first.a) for layer in layers):
        return replace(first, b=torch.cat([layer.b for layer in layers]))
    a = torch.cat([layer.a for layer in layers])
    b = torch.block_diag(
        *(
            by_piece[piece].b if piece in by_piece else first.b.new_zeros(count * unit, 0)
            for piece, _, count in pieces
        )
    )
    return LoraLayer(a=a, b=b, alpha=first.scale * len(a))


def _split(module: str) -> tuple[str, str, str]:
    """``double_blocks.3.img_attn.qkv`` -> ``double_blocks``, ``3``, ``img_attn.qkv``."""
    kind, index, leaf = (module.split(".", 2) + ["", ""])[:3]
    return kind, index, leaf


def _check_index(module: str, kind: str, index: str) -> None:
    count = _BLOCKS[kind][1]
    if not index.isdecimal() or int(index) >= count:
        raise _not_flux(f"{module} lies beyond the {count} {kind} of FLUX.1")


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
