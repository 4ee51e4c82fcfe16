"""The layers of a LoRA, and the two layouts that they are written in.

- *native*: ``diffusion_model.<module>.lora_A.weight``, ``.lora_B.weight`` and ``.alpha``, with
  ComfyUI's module names. ComfyUI's loaders take it for every architecture.
- *diffusers*: ``transformer.<module>.lora_A.weight`` and ``.lora_B.weight``, with diffusers' module
  names and the scale folded into B, because diffusers writes no alpha.

``lora/contents.py`` reads these and the layouts of other programs.

Legend: r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "Layout", "LoraLayer", "Piece", "fused", "layer_tensors"]

Layout = Literal["native", "diffusers"]
LAYOUTS: tuple[Layout, ...] = ("native", "diffusers")

_PREFIXES: dict[Layout, str] = {"native": "diffusion_model.", "diffusers": "transformer."}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraLayer:
    """The update (alpha / r) B A of one linear layer."""

    a: Tensor
    """A, shape (r, in)."""
    b: Tensor
    """B, shape (out, r)."""
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def folded(self) -> LoraLayer:
        """The same update with the scale moved into B, which then is float32."""
        if self.scale == 1.0:
            return self
        return LoraLayer(a=self.a, b=self.b.float() * self.scale, alpha=self.rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """An update of some rows of a layer."""

    layer: LoraLayer
    """B has as many rows as the piece."""
    first: int
    """First row of the layer that it changes."""

    @property
    def end(self) -> int:
        """First row after it."""
        return self.first + self.layer.b.shape[0]


def fused(pieces: Sequence[Piece], rows: int) -> LoraLayer:
    """Make one layer of its pieces, exactly.

    Pieces with one and the same A that cover every row give a layer of their rank. Others give a
    B with each piece in columns of its own, so that the rank is the sum of theirs.

    Args:
        pieces: At least one; they do not overlap.
        rows: Outputs of the layer; rows of no piece stay 0.
    """
    pieces = sorted(pieces, key=lambda piece: piece.first)
    if len({piece.layer.scale for piece in pieces}) > 1:
        pieces = [replace(piece, layer=piece.layer.folded()) for piece in pieces]
    layers = [piece.layer for piece in pieces]
    first = layers[0]
    whole = sum(len(layer.b) for layer in layers) == rows
    if whole and all(torch.equal(layer.a, first.a) for layer in layers):
        return replace(first, b=torch.cat([layer.b for layer in layers]))
    a = torch.cat([layer.a for layer in layers])
    kinds = [layer.b.dtype for layer in layers]
    b = torch.zeros(rows, len(a), dtype=kinds[0] if len(set(kinds)) == 1 else torch.float32)
    column = 0
    for piece in pieces:
        b[piece.first : piece.end, column : column + piece.layer.rank] = piece.layer.b
        column += piece.layer.rank
    return LoraLayer(a=a, b=b, alpha=first.scale * len(a))


def layer_tensors(layers: Mapping[str, LoraLayer], layout: Layout) -> dict[str, Tensor]:
    """Put a LoRA file together.

    Args:
        layers: Module name in this layout -> layer.
        layout: Of the file.

    Returns:
        Contiguous CPU tensors that share no memory.
    """
    out: dict[str, Tensor] = {}
    for module, layer in layers.items():
        name = _PREFIXES[layout] + module
        written = layer.folded() if layout == "diffusers" else layer
        out[f"{name}.lora_A.weight"] = _plain(written.a)
        out[f"{name}.lora_B.weight"] = _plain(written.b)
        if layout == "native":
            out[f"{name}.alpha"] = torch.tensor(float(layer.alpha))
    return out


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous().clone()
