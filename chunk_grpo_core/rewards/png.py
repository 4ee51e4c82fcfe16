"""PNG in base64, to strangers and from them: what a header promises is checked before unpacking.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..optional import require
from .picture_files import unpacked
from .pixels import to_pil

__all__ = ["png_base64", "png_bytes", "png_size", "unpack_pngs"]

_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_HEADER_BYTES = 33
_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}


def png_base64(images: Tensor) -> list[str]:
    """Pictures (B, H, W, 3) in 0..1, finite -> B PNG files in base64."""
    return [base64.b64encode(png_bytes(picture)).decode("ascii") for picture in images]


def png_bytes(picture: Tensor) -> bytes:
    """A picture (H, W, 3) in 0..1, finite -> a PNG file."""
    file = io.BytesIO()
    to_pil(picture[None])[0].save(file, "PNG", compress_level=1)
    return file.getvalue()


def png_size(text: str) -> tuple[int, int]:
    """Width and height in the header of a PNG file in base64; nothing is unpacked.

    Raises:
        ValueError: It is something else, or not RGB with 8 bits.
    """
    start = base64.b64decode(text[: _HEADER_BYTES // 3 * 4], validate=True)
    if len(start) < _HEADER_BYTES or not start.startswith(_START):
        raise ValueError("it is not PNG")
    width, height, bits, kind = struct.unpack_from(">IIBB", start, len(_START))
    # Pillow shows 16 bits a channel as mode RGB, and drops half of them.
    mode = _MODES.get(kind, "?") + ("" if bits == 8 else f";{bits}")
    if mode != "RGB":
        mode = {"L;16": "I;16"}.get(mode, mode)
        raise ValueError(f"it has mode {mode}; send 8-bit RGB")
    return width, height


def unpack_pngs(texts: Sequence[str], size: tuple[int, int], first: int = 0) -> Tensor:
    """B PNG files in base64, all of one bearable size -> (B, H, W, 3), float32 in 0..1.

    Args:
        texts: The files.
        size: What :func:`png_size` says of each.
        first: Number of the first of them, for messages.

    Raises:
        ValueError: A file is damaged.
    """
    numpy = require("numpy", "To read pictures")
    images = torch.empty(len(texts), size[1], size[0], 3)
    for index, text in enumerate(texts):
        name = f"image {first + index}"
        try:
            data = io.BytesIO(base64.b64decode(text, validate=True))
        except ValueError as error:
            raise ValueError(f"{name} is damaged: {error}") from error
        picture = unpacked(data, name, formats=("PNG",), check=partial(_check_again, size))
        images[index] = torch.from_numpy(numpy.array(picture))
    return images.div_(255.0)


def _check_again(size: tuple[int, int], picture: Any, name: object) -> None:
    """A file may hold a second header, which is the one that Pillow goes by."""
    if picture.size != size or not picture.tile or picture.tile[0][3] != "RGB":
        raise ValueError(f"{name} is damaged: it has two headers, or no pixels")
