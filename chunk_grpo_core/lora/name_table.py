"""The layers of a family of models under ComfyUI's names and under diffusers' names, as a table.

ComfyUI fuses some of what diffusers splits: ``qkv`` is ``to_q``, ``to_k``, ``to_v`` stacked by
rows, and ``linear1`` of FLUX.1's single blocks holds ``proj_mlp`` below these three. Both
directions are exact. OneTrainer's OMI format has native names for layers that are split: ``qkv.0``,
``qkv.1`` and ``qkv.2`` are ``to_q``, ``to_k`` and ``to_v``.

The tables are our own: inverting ComfyUI's would name some weights twice, and ComfyUI would then
apply them twice without a word.

Legend: r rank, h hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from .layers import Layout, LoraLayer, Piece, fused

__all__ = ["Blocks", "Leaf", "NameTable", "same", "stacked", "twice", "whole"]

_Layers = Mapping[str, LoraLayer]


@dataclass(frozen=True)
class Leaf:
    """One native layer of a block."""

    pieces: tuple[tuple[str, int, int], ...]
    """What diffusers has of it: name in the block, first row, number of rows, in units of h."""
    inputs: int | None = 1
    """Width of its input in units of h; None where widths have no fixed relation, and nothing is
    stacked."""
    turns: bool = False
    """Whether its halves change places where it has twice as many outputs as inputs, as
    :attr:`NameTable.turned` do: in the last block of SD3."""

    @property
    def rows(self) -> int:
        """Its outputs in units of h."""
        return sum(rows for _, _, rows in self.pieces)


def whole(name: str, rows: int = 1, inputs: int | None = 1, *, turns: bool = False) -> Leaf:
    """A layer that is one in diffusers, too."""
    return Leaf(((name, 0, rows),), inputs, turns)


def stacked(*names: str) -> Leaf:
    """Layers of h rows each, as one."""
    return Leaf(tuple((name, row, 1) for row, name in enumerate(names)))


def same(*names: str) -> dict[str, Leaf]:
    """Layers with one name in both."""
    return {name: whole(name, inputs=None) for name in names}


@dataclass(frozen=True)
class Blocks:
    """A list of equal blocks."""

    native: str
    """Its native name."""
    diffusers: str
    """Its name in diffusers."""
    leaves: Mapping[str, Leaf]
    """Name of a native layer inside a block -> what it is in diffusers."""
    most: int
    """Number of blocks in the largest published model."""

    @cached_property
    def native_leaf(self) -> Mapping[str, str]:
        """Name of a layer of diffusers inside a block -> the native layer it belongs to."""
        return {piece: name for name, leaf in self.leaves.items() for piece, _, _ in leaf.pieces}

    @cached_property
    def numbered(self) -> Mapping[str, str]:
        """Name of a part of a stacked native layer in OMI -> its name in diffusers."""
        stacks = {name: leaf for name, leaf in self.leaves.items() if len(leaf.pieces) > 1}
        return {
            f"{name}.{number}": piece
            for name, leaf in stacks.items()
            for number, (piece, _, _) in enumerate(leaf.pieces)
        }


@dataclass(frozen=True, kw_only=True)
class NameTable:
    """One family's names."""

    title: str
    """As messages call the family."""
    blocks: tuple[Blocks, ...]
    outside: Mapping[str, str] = field(default_factory=dict)
    """Native names of the layers outside of blocks -> their names in diffusers."""
    turned: Mapping[str, str] = field(default_factory=dict)
    """The same for layers whose rows stand in another order: (shift, scale) and (scale, shift)."""
    omi: Mapping[str, str] = field(default_factory=dict)
    """Names that only OMI has for layers outside of blocks -> their native names."""

    def spelled(self, name: str) -> dict[Layout, str]:
        """Find a layer.

        Args:
            name: Its name in a file, without a prefix, with dots or with underscores for them.

        Returns:
            Layout in which it is a name -> that name with dots; empty if it is none.
        """
        return dict(self._where(name))

    def pieces(self, module: str) -> list[tuple[str, int, int]]:
        """The layers of diffusers that a native layer of a block consists of.

        Returns:
            Name, first row and number of rows of each, rows in units of h; empty for other layers.
        """
        try:
            blocks, index, name = self._split(module, "native")
        except KeyError:
            return []
        pieces = blocks.leaves[name].pieces if name in blocks.leaves else ()
        return [(f"{blocks.diffusers}.{index}.{piece}", row, rows) for piece, row, rows in pieces]

    def convert(self, layers: _Layers, to: Layout) -> dict[str, LoraLayer]:
        """Name a LoRA in a layout; layers are cut or fused if needed.

        Args:
            layers: Name as :meth:`spelled` knows it -> layer.
            to: Layout wanted.

        Raises:
            ValueError: A layer has not the shape of this family's, or is there twice.
        """
        kept: dict[str, LoraLayer] = {}
        others: dict[str, LoraLayer] = {}
        for name, layer in layers.items():
            where = self.spelled(name)
            group = kept if to in where else others
            module = where[to] if to in where else next(iter(where.values()))
            if module in group:
                raise twice(module)
            group[module] = layer
        renamed = self._to_native(others) if to == "native" else self._to_diffusers(others)
        if doubled := kept.keys() & renamed.keys():
            raise twice(min(doubled))
        return kept | renamed

    def _where(self, name: str) -> Iterator[tuple[Layout, str]]:
        for layout, names in self._outside.items():
            if name in names:
                yield layout, names[name]
        for pattern, layout, blocks, leaves in self._patterns:
            match = pattern.fullmatch(name)
            if match and match["leaf"] in leaves and int(match["index"]) < blocks.most:
                kind = blocks.native if layout == "native" else blocks.diffusers
                yield layout, f"{kind}.{match['index']}.{leaves[match['leaf']]}"

    @cached_property
    def _outside(self) -> dict[Layout, dict[str, str]]:
        pairs = {**self.outside, **self.turned}
        native = _spellings(pairs) | dict(self.omi)
        return {"native": native, "diffusers": _spellings(pairs.values())}

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Layout, Blocks, dict[str, str]]]:
        out: list[tuple[re.Pattern[str], Layout, Blocks, dict[str, str]]] = []
        for blocks in self.blocks:
            sides: tuple[tuple[Layout, str, Mapping[str, str]], ...] = (
                ("native", blocks.native, {leaf: leaf for leaf in blocks.leaves}),
                ("diffusers", blocks.diffusers, {leaf: leaf for leaf in blocks.native_leaf}),
                ("diffusers", blocks.native, blocks.numbered),
            )
            for layout, kind, names in sides:
                for dot in "._":
                    pattern = rf"{re.escape(kind.replace('.', dot))}{re.escape(dot)}(?P<index>\d+)"
                    leaves = {leaf.replace(".", dot): name for leaf, name in names.items()}
                    whole_name = re.compile(rf"{pattern}{re.escape(dot)}(?P<leaf>.+)")
                    out.append((whole_name, layout, blocks, leaves))
        return out

    def _to_diffusers(self, layers: _Layers) -> dict[str, LoraLayer]:
        """The pieces of a fused layer share its A and take their rows of B. Where they use
        different columns of B, as after :meth:`_to_native`, each takes its own columns only.
        """
        out: dict[str, LoraLayer] = {}
        for module, layer in layers.items():
            if module in self.outside:
                out[self.outside[module]] = layer
            elif module in self.turned:
                out[self.turned[module]] = self._halves_turned(module, layer)
            else:
                blocks, index, name = self._split(module, "native")
                leaf = blocks.leaves[name]
                unit = self._unit(module, layer, leaf, leaf.rows)
                layer = self._turned_if_last(module, leaf, layer)
                rows = {
                    f"{blocks.diffusers}.{index}.{piece}": layer.b[
                        first * unit : (first + count) * unit
                    ]
                    for piece, first, count in leaf.pieces
                }
                out |= _cut(layer, rows)
        return out

    def _to_native(self, layers: _Layers) -> dict[str, LoraLayer]:
        """Pieces with one and the same A give a layer of their rank. Others give a block-diagonal
        B, whose rank is the sum of theirs.
        """
        outside = {name: native for native, name in self.outside.items()}
        turned = {name: native for native, name in self.turned.items()}
        out: dict[str, LoraLayer] = {}
        groups: dict[str, dict[str, LoraLayer]] = {}
        leaves: dict[str, Leaf] = {}
        for module, layer in layers.items():
            if module in outside:
                out[outside[module]] = layer
            elif module in turned:
                out[turned[module]] = self._halves_turned(module, layer)
            else:
                blocks, index, piece = self._split(module, "diffusers")
                name = blocks.native_leaf[piece]
                native = f"{blocks.native}.{index}.{name}"
                leaves[native] = blocks.leaves[name]
                groups.setdefault(native, {})[piece] = layer
        for module, by_piece in groups.items():
            leaf = leaves[module]
            there = [piece for piece in leaf.pieces if piece[0] in by_piece]
            units = {self._unit(module, by_piece[p], leaf, count) for p, _, count in there}
            if len(units) > 1:
                raise ValueError(
                    f"the pieces of {module} have different widths, which {self.title}'s have not"
                )
            unit = units.pop()
            pieces = [
                Piece(layer=self._turned_if_last(module, leaf, by_piece[p]), first=first * unit)
                for p, first, _ in there
            ]
            out[module] = fused(pieces, unit * leaf.rows)
        return out

    def _split(self, module: str, layout: Layout) -> tuple[Blocks, str, str]:
        """A name that is known -> its blocks, the number of its block, its name in the block."""
        for blocks in self.blocks:
            kind = blocks.native if layout == "native" else blocks.diffusers
            if match := re.fullmatch(rf"{re.escape(kind)}\.(\d+)\.(.+)", module):
                return blocks, match[1], match[2]
        raise KeyError(module)

    def _unit(self, module: str, layer: LoraLayer, leaf: Leaf, rows: int) -> int:
        """Return h as this layer has it; check that both its sides agree."""
        outputs, inputs = layer.b.shape[0], layer.a.shape[1]
        if leaf.inputs is None:
            return outputs // rows
        unit = outputs // rows
        if outputs != unit * rows or inputs != unit * leaf.inputs:
            raise ValueError(
                f"{module} maps {inputs} to {outputs} numbers, which is not {self.title}'s shape"
            )
        return unit

    def _turned_if_last(self, module: str, leaf: Leaf, layer: LoraLayer) -> LoraLayer:
        if leaf.turns and layer.b.shape[0] == 2 * layer.a.shape[1]:
            return self._halves_turned(module, layer)
        return layer

    def _halves_turned(self, module: str, layer: LoraLayer) -> LoraLayer:
        if layer.b.shape[0] % 2:
            raise ValueError(f"{module} has an odd number of outputs, which {self.title}'s has not")
        return replace(layer, b=torch.cat(layer.b.chunk(2)[::-1]))


def twice(name: str) -> ValueError:
    """The error of a LoRA that has a layer under two names."""
    return ValueError(
        f"this LoRA gives {name} twice, under two spellings; a file must hold one LoRA, in one "
        "layout"
    )


def _spellings(names: Iterable[str]) -> dict[str, str]:
    return {spelling: name for name in names for spelling in (name.replace(".", "_"), name)}


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
