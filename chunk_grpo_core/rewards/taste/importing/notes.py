"""Ratings in picture files and beside them: XMP and EXIF.

    <picture>.xmp, <name>.xmp   xmp:Rating -1 (rejected), 0 (not rated), 1 to 5
    in the file                 the same; MicrosoftPhoto:Rating 1 to 99
    EXIF                        0x4746: 0 to 5; 0x4749: 0 to 99

The first that says something counts. XMP is looked through as text and never parsed as XML, so that
nothing in it can be unfolded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...picture_files import unpacked
from .rated import Rated, picture_files

__all__ = ["rated_files", "rating_of"]

_LARGEST = 64 * 2**20
_LARGEST_SIDECAR = 4 * 2**20
_VALUE = rb"""\s*(?:=\s*["']([^"'<]{0,20})["']|>\s*([^<]{0,20})<)"""
_XMP = re.compile(rb"\bxmp:Rating" + _VALUE)
_MICROSOFT = re.compile(rb"\bMicrosoftPhoto:Rating" + _VALUE)
_STARS, _PERCENT = 0x4746, 0x4749


def rated_files(folder: Path) -> Iterator[Rated]:
    """Pictures below a folder that have a rating."""
    for file in picture_files(folder):
        if rating := rating_of(file):
            yield Rated("stars", (file,), rating, where=str(file))


def rating_of(file: Path) -> int:
    """Rating of a picture file: 1 to 5, -1 for a rejected one, 0 for none.

    Raises:
        ValueError: A rating is no such number, or the file is no picture.
    """
    for sidecar in (file.with_name(f"{file.name}.xmp"), file.with_suffix(".xmp")):
        if sidecar.is_file():
            if sidecar.stat().st_size > _LARGEST_SIDECAR:
                raise ValueError(f"{sidecar} is larger than 4 MiB; it is no XMP file")
            if rating := _in_text(sidecar.read_bytes(), sidecar):
                return rating
    if file.stat().st_size <= _LARGEST and (rating := _in_text(file.read_bytes(), file)):
        return rating
    with open(file, "rb") as opened:
        picture = unpacked(opened, file)
    return _in_picture(picture, file)


def _in_text(body: bytes, file: Path) -> int:
    if found := _XMP.search(body):
        return _stars(found[1] or found[2] or b"", "xmp:Rating", file)
    if found := _MICROSOFT.search(body):
        return _percent(found[1] or found[2] or b"", "MicrosoftPhoto:Rating", file)
    return 0


def _in_picture(picture: Any, file: Path) -> int:
    """What Pillow unpacks: compressed XMP of a PNG, and EXIF."""
    text = picture.info.get("XML:com.adobe.xmp") or picture.info.get("xmp") or b""
    text = text.encode() if isinstance(text, str) else text
    if rating := _in_text(text, file):
        return rating
    exif = picture.getexif()
    if rating := _stars(exif.get(_STARS, 0), "EXIF 0x4746", file):
        return rating
    return _percent(exif.get(_PERCENT, 0), "EXIF 0x4749", file)


def _number(value: object, what: str, file: Path, least: int, most: int) -> int:
    try:
        number = float(value.decode() if isinstance(value, bytes) else value)  # type: ignore[arg-type]
        fits = number == int(number) and least <= number <= most
    except (ValueError, TypeError, OverflowError):
        number, fits = 0.0, False
    if not fits:
        raise ValueError(f"{file}: {what} is {value!r:.40}; it must be {least} to {most}")
    return int(number)


def _stars(value: object, what: str, file: Path) -> int:
    return _number(value, what, file, -1, 5)


def _percent(value: object, what: str, file: Path) -> int:
    """1, 25, 50, 75 and 99 are one to five stars for Windows."""
    percent = _number(value, what, file, 0, 100)
    return 0 if percent == 0 else min(5, 1 + (percent + 12) // 25)
