"""Picture files: modes, depths and formats of an even grey, damaged and hostile ones."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy
from PIL import Image

from ..material import Material
from ..mutate import damaged_bytes
from ..outcomes import Case, Check, Expected
from ..warm import Ended

__all__ = ["picture_files", "png"]

_SIZE = (24, 16)


def picture_files(rng: random.Random, folder: Path, material: Material) -> Case:
    """One picture for ``score --reward brightness``; of an even grey, so the score is known."""
    kind = rng.choice(["grey", "grey", "damaged", "hostile"])
    if kind == "hostile":
        name = rng.choice(sorted(_HOSTILE))
        suffix, make, expected = _HOSTILE[name]
        make(folder / f"p{suffix}")
        return _case(folder, f"p{suffix}", name, expected, None)
    name, level = rng.choice(sorted(_MODES)), rng.randrange(10, 246)
    suffix, make_picture, expected = _MODES[name]
    if make_picture is None:
        return _pile(folder, level)
    body = make_picture(level)
    if kind == "damaged":
        body, what = damaged_bytes(body, rng)
        (folder / f"p{suffix}").write_bytes(body)
        check = _is_grey(level) if what.startswith("cut") else None  # what is left is still grey
        return _case(folder, f"p{suffix}", f"{name}, {what}", Expected.either, check)
    (folder / f"p{suffix}").write_bytes(body)
    return _case(folder, f"p{suffix}", f"{name} of {level}", expected, _is_grey(level))


def _case(folder: Path, file: str, about: str, expected: Expected, check: Check | None) -> Case:
    return Case(
        argv=("score", file, "--reward", "brightness", "--json"),
        about=about,
        names=(file,),
        expected=expected,
        check=check,
        seconds=10,
    )


def _pile(folder: Path, level: int) -> Case:
    """Several pictures of several sizes and formats at once."""
    files = []
    for index, mode in enumerate(("RGB", "L", "RGBA")):
        files.append(f"p{index}.png")
        grey = Image.new("RGB", (8 + index, 9), (level,) * 3)
        grey.convert(mode).save(folder / files[-1])
    case = _case(folder, "p0.png", "three at once", Expected.accepted, _is_grey(level))
    argv = ("score", *files, "--reward", "brightness", "--json")
    return Case(argv=argv, about=case.about, names=(), expected=case.expected, check=case.check)


def _is_grey(level: int) -> Check:
    def check(folder: Path, ended: Ended) -> str:
        for row in json.loads(ended.stdout)["scores"]:
            if abs(row["score"] - level / 255) > 0.012:
                return f"brightness {row['score']}, not {level / 255:.4f}"
        return ""

    return check


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _plain(mode: str, form: str, **options: object) -> Callable[[int], bytes]:
    return lambda level: _saved(
        Image.new("RGB", _SIZE, (level,) * 3).convert(mode), form, **options
    )


def _array(kind: str, scale: float, form: str) -> Callable[[int], bytes]:
    def make(level: int) -> bytes:
        return _saved(Image.fromarray(numpy.full(_SIZE[::-1], level * scale, dtype=kind)), form)

    return make


def _palette(level: int) -> bytes:
    image = Image.new("P", _SIZE, 3)
    image.putpalette([0, 0, 0, 255, 0, 0, 9, 9, 9, level, level, level])
    return _saved(image, "PNG")


def _turned(level: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(Image.new("RGB", _SIZE, (level,) * 3), "JPEG", exif=exif)


def _colour_16(level: int) -> bytes:
    """RGB with 16 bits, which Pillow cannot write."""
    row = b"\0" + struct.pack(">H", level * 257) * 3 * _SIZE[0]
    return png(*_SIZE, 16, 2, zlib.compress(row * _SIZE[1]))


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """A PNG file with this head and this compressed data, whether they fit or not."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


_YES, _NO, _ANY = Expected.accepted, Expected.refused, Expected.either
_MODES: dict[str, tuple[str, Callable[[int], bytes] | None, Expected]] = {
    "PNG RGB": (".png", _plain("RGB", "PNG"), _YES),
    "PNG RGBA, opaque": (".png", _plain("RGBA", "PNG"), _YES),
    "PNG L": (".png", _plain("L", "PNG"), _YES),
    "PNG LA": (".png", _plain("LA", "PNG"), _YES),
    "PNG palette": (".png", _palette, _YES),
    "PNG 16-bit grey": (".png", _array("uint16", 257, "PNG"), _ANY),
    "PNG 16-bit RGB": (".png", _colour_16, _ANY),
    "JPEG": (".jpg", _plain("RGB", "JPEG", quality=95), _YES),
    "JPEG grey": (".jpg", _plain("L", "JPEG", quality=95), _YES),
    "JPEG turned": (".jpg", _turned, _YES),
    "JPEG CMYK": (".jpg", _plain("CMYK", "JPEG", quality=95), _ANY),
    "WebP": (".webp", _plain("RGB", "WEBP", lossless=True), _YES),
    "BMP": (".bmp", _plain("RGB", "BMP"), _YES),
    "GIF": (".gif", _plain("RGB", "GIF"), _YES),
    "TIFF": (".tif", _plain("RGB", "TIFF"), _YES),
    "TIFF of floats, 0 to 1": (".tif", _array("float32", 1 / 255, "TIFF"), _ANY),
    "TIFF 16-bit": (".tif", _array("uint16", 257, "TIFF"), _ANY),
    "TIFF int32": (".tif", _array("int32", 2**16, "TIFF"), _ANY),
    "PNG, named .jpg": (".jpg", _plain("RGB", "PNG"), _YES),
    "several": (".png", None, _YES),
}


def _bytes(body: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(body) and None


def _large(side: int) -> Callable[[Path], None]:
    return lambda path: Image.new("1", (side, side)).save(path)


def _frames(path: Path) -> None:
    frames = [Image.new("RGB", _SIZE, (n, 0, 0)) for n in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _bomb(width: int, height: int) -> Callable[[Path], None]:
    return _bytes(png(width, height, 8, 2, zlib.compress(bytes(1000))))


_HOSTILE: dict[str, tuple[str, Callable[[Path], None], Expected]] = {
    "missing": (".png", lambda path: None, _NO),
    "a pipe": (".png", os.mkfifo, _NO),
    "a folder": (".png", Path.mkdir, _NO),
    "a link to itself": (".png", lambda path: path.symlink_to(path), _NO),
    "endless zeros": (".png", lambda path: path.symlink_to("/dev/zero"), _NO),
    "empty": (".png", _bytes(b""), _NO),
    "text": (".png", _bytes(b"hello"), _NO),
    "SVG": (".svg", _bytes(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), _NO),
    "a header alone": (".png", _bytes(b"\x89PNG\r\n\x1a\n"), _NO),
    "60,000 x 60,000 pixels": (".png", _bomb(60_000, 60_000), _NO),
    "2^31 pixels wide": (".png", _bomb(2**31 - 1, 1), _NO),
    "0 pixels wide": (".png", _bomb(0, 16), _NO),
    "12,000 x 12,000 pixels, whole": (".png", _large(12_000), _NO),
    "16,000 x 16,000 pixels, whole": (".png", _large(16_000), _NO),
    "1 x 1 pixel": (".png", _large(1), _ANY),
    "two frames": (".gif", _frames, _ANY),
    "PostScript": (".eps", _bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), _NO),
    "a safetensors file": (".png", _bytes(struct.pack("<Q", 2) + b"{}"), _NO),
}
