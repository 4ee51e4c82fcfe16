"""The gate for pictures: from a file, or its bytes, to numbers in 0..1, or why it is refused.

Only the formats of pictures are opened, and never those that run a program (PostScript); the size
is looked at before anything is unpacked.

Legend: H W picture size.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..optional import require
from .pixels import as_colour

__all__ = ["MAX_PIXELS", "from_pil", "load_picture", "read_picture", "unpacked"]

MAX_PIXELS = 2**26
"""Pixels of a picture file, at most: 8192 x 8192, which take 0.8 GB as numbers."""
_FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "QOI"),
    *("AVIF", "JPEG2000"),
)
#: A photo of some phones: the picture, and then the same as others saw it.
_FIRST_OF_SEVERAL = "MPO"
BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError),
    *(AttributeError, OverflowError, RuntimeError, AssertionError, struct.error, zlib.error),
)
"""What Pillow raises for files that are not what they claim; kept around calls of Pillow alone."""
_DEEP = {"I;16", "I;16B", "I;16L", "I;16N"}


def load_picture(path: str | Path) -> Tensor:
    """Read a picture file.

    Args:
        path: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, TGA, QOI, AVIF or JPEG 2000; what counts is the
            content, and not the ending. At most :data:`MAX_PIXELS` pixels.

    Returns:
        (H, W, 3), float32 in 0..1, turned as its camera noted; see :func:`from_pil`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a folder or no ordinary file, no picture, too large or damaged, it holds
            several pictures, or its numbers have no known range. The message names the file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the pictures in it, for example {path}/*.png")
    if not path.is_file():
        if path.exists():
            raise ValueError(f"{path} is no ordinary file (a pipe or a device); name a picture")
        raise FileNotFoundError(f"there is no picture {path}")
    with open(path, "rb") as file:
        return read_picture(file, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings of sizes and notes, which are looked at here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@_quiet()
def read_picture(file: BinaryIO, name: object) -> Tensor:
    """Read an open picture file, which messages call ``name``, as :func:`load_picture` does."""
    picture = unpacked(file, name)
    try:
        return from_pil(_as_held(picture))
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error


def _check_size(picture: Any, name: object) -> None:
    width, height = picture.size
    if min(width, height) < 1:
        raise ValueError(f"{name} is {width} pixels wide and {height} high; it holds no picture")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} has {width} x {height} pixels, more than {_limit()}")


@_quiet()
def unpacked(
    file: BinaryIO,
    name: object,
    *,
    formats: Sequence[str] = _FORMATS,
    check: Callable[[Any, object], None] = _check_size,
) -> Any:
    """Unpack an open picture file: a PIL picture of any mode.

    Args:
        file: Nothing of it is unpacked before ``check``.
        name: What to call it in messages.
        formats: Those that are opened, if this Pillow has them.
        check: Gets the PIL picture and the name, and raises ValueError for one that is refused.

    Raises:
        ValueError: It is of another format, refused, damaged, or holds several pictures.
    """
    image = require("PIL.Image", "To read pictures")
    image.init()
    formats = [known for known in formats if known in image.OPEN]
    try:
        picture = image.open(file, formats=formats)
    except image.DecompressionBombError as error:
        raise ValueError(f"{name} has more than {_limit()}") from error
    except image.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is no picture that can be read ({', '.join(formats)}), or it is damaged"
        ) from error
    except BROKEN as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    check(picture, name)
    try:
        several = picture.format != _FIRST_OF_SEVERAL and getattr(picture, "is_animated", False)
        picture.load()
    except (*BROKEN, image.DecompressionBombError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if several:
        raise ValueError(
            f"{name} holds several pictures (an animation, or pages); save the one that is meant "
            "as a file of its own"
        )
    return picture


def from_pil(picture: Any) -> Tensor:
    """A PIL picture of any mode -> (H, W, 3), float32 in 0..1.

    Grey becomes colour. Transparent pictures are laid on white, as a page shows them. 16 bits of
    grey keep their value; of 16-bit colour Pillow keeps 8 bits. Numbers with a point are values in
    0..1.

    Raises:
        ValueError: Numbers with a point that leave 0..1, or whole numbers of 32 bits, whose range
            nobody knows.
    """
    numpy = require("numpy", "To read pictures")
    if picture.mode in _DEEP or picture.mode == "I" and picture.format in ("PNG", "PPM"):
        grey = torch.from_numpy(numpy.array(picture, dtype=numpy.int32)).float()
        return as_colour(grey.div_(65535.0)[..., None]).contiguous()
    if picture.mode == "I":
        raise ValueError("its numbers are whole, of 32 bits, and where white lies is not known")
    if picture.mode == "F":
        grey = torch.from_numpy(numpy.array(picture, dtype=numpy.float32))
        if not bool(((grey >= 0) & (grey <= 1)).all()):
            raise ValueError(
                f"its numbers have a point and lie in {float(grey.min()):g} to "
                f"{float(grey.max()):g}; they must be in 0 to 1"
            )
        return as_colour(grey[..., None]).contiguous()
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layers = torch.from_numpy(numpy.array(picture.convert("RGBA")))
        return as_colour(layers.float().div_(255.0))
    return torch.from_numpy(numpy.array(picture.convert("RGB"))).float().div_(255.0)


def _as_held(picture: Any) -> Any:
    """The picture as its camera was held; notes that are damaged turn nothing."""
    form = picture.format
    try:
        upright = require("PIL.ImageOps", "To read pictures").exif_transpose(picture)
    except BROKEN:
        return picture
    upright.format = form  # a copy has none, and from_pil asks for it
    return upright


def _limit() -> str:
    side = int(MAX_PIXELS**0.5)
    return f"the {MAX_PIXELS:,} ({side} x {side}) that a picture may have; make it smaller"
