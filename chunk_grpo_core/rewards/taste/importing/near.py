"""Pictures that are the same to the eye: saved again, made smaller, with another quality.

Two numbers must agree: which of neighbouring fields is brighter (dHash, 64 bits) and the mean
colours of 4 x 4 fields. Pictures without any structure have no such hash and are never the same.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["Seen", "look_of"]

_MOST_BITS = 3
_MOST_COLOUR = 0.02
_FEWEST_EDGES = 12


def look_of(picture: Tensor) -> tuple[int, Tensor] | None:
    """Hash and colours (48,) of a picture (H, W, 3) in 0..1; None if it has no structure."""
    planes = picture.movedim(-1, 0)[None]
    grey = functional.adaptive_avg_pool2d(planes.mean(1, keepdim=True), (8, 9))[0, 0]
    steps = grey[:, 1:] - grey[:, :-1]
    if int((steps.abs() > 1 / 255).sum()) < _FEWEST_EDGES:
        return None
    code = 0
    for bit in (steps > 0).flatten().tolist():
        code = code << 1 | bit
    return code, functional.adaptive_avg_pool2d(planes, 4).flatten()


class Seen:
    """The looks of pictures, to find one that is the same."""

    def __init__(self) -> None:
        self._bands: dict[tuple[int, int], list[tuple[int, Tensor, str]]] = {}

    def same_as(self, look: tuple[int, Tensor]) -> str | None:
        """Name of a picture that was added and looks the same; None if there is none."""
        code, colours = look
        for band in self._bands_of(code):
            for other, other_colours, name in self._bands.get(band, ()):
                is_near = (code ^ other).bit_count() <= _MOST_BITS
                if is_near and float((colours - other_colours).abs().max()) <= _MOST_COLOUR:
                    return name
        return None

    def add(self, look: tuple[int, Tensor], name: str) -> None:
        """Remember a picture."""
        for band in self._bands_of(look[0]):
            self._bands.setdefault(band, []).append((*look, name))

    @staticmethod
    def _bands_of(code: int) -> list[tuple[int, int]]:
        """Codes that differ in at most three bits have one of four bands in common."""
        return [(band, code >> 16 * band & 0xFFFF) for band in range(4)]
