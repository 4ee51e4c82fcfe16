"""The form in which a pipeline steps its latents: a grid, or tokens of its patches.

Legend: B samples, C channels, h w size of the grid, p side of a patch, n = h w / p^2 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...optional import require

__all__ = ["Form", "packed", "unpacked"]

_GRID, _TOKENS = "b c (h p) (w q)", "b (h w) (c p q)"


@dataclass(frozen=True)
class Form:
    """How latents of a picture are laid out."""

    packed: bool
    """Whether they are tokens (n, C p^2) instead of a grid (C, h, w)."""
    patch: int = 2
    """p, the side in latent pixels of what the transformer takes as one token."""

    def shape(self, channels: int, rows: int, columns: int) -> tuple[int, ...]:
        """Shape of one latent.

        Args:
            channels: ``in_channels`` of the transformer.
            rows: Rows of tokens.
            columns: Columns of tokens.
        """
        if self.packed:
            return (rows * columns, channels)
        return (channels, rows * self.patch, columns * self.patch)

    def to_grid(self, latents: Tensor, rows: int) -> Tensor:
        """Latents as the VAE takes them: (B, C, h, w)."""
        return unpacked(latents, rows, self.patch) if self.packed else latents

    def from_grid(self, grid: Tensor) -> Tensor:
        """Undo :meth:`to_grid`."""
        return packed(grid, self.patch) if self.packed else grid


def packed(grid: Tensor, patch: int = 2) -> Tensor:
    """Grid (B, C, h, w) -> tokens (B, n, C p^2), channels slowest."""
    einops = require("einops", "To pack latents into tokens")
    return einops.rearrange(grid, f"{_GRID} -> {_TOKENS}", p=patch, q=patch)


def unpacked(tokens: Tensor, rows: int, patch: int = 2) -> Tensor:
    """Undo :func:`packed`, with ``rows`` rows of tokens."""
    einops = require("einops", "To unpack tokens")
    return einops.rearrange(tokens, f"{_TOKENS} -> {_GRID}", h=rows, p=patch, q=patch)
