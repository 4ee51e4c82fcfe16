"""Ratings in picture files and beside them: XMP and EXIF.

    <picture>.xmp, <name>.xmp   xmp:Rating -1 (rejected), 0 (not rated), 1 to 5
    in the file                 the same; MicrosoftPhoto:Rating 1 to 99
    EXIF                        0x4746: 0 to 5; 0x4749: 0 to 99

The first that says something counts. XMP is looked through as text, and nothing in it is unfolded.
Notes in which no rating is found must be whole: damaged ones are not the same as none.
"""

from __future__ import annotations

import codecs
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from ....settings.declared import shortened
from ...picture_files import BROKEN, unpacked
from .rated import Rated, Unreadable, picture_files

__all__ = ["DamagedNotes", "rated_files", "rating_of"]

_LARGEST = 64 * 2**20
_LARGEST_SIDECAR = 4 * 2**20
_VALUE = rb"""\s*(?:=\s*["']([^"'<]{0,20})["']|>\s*([^<]{0,20})<)"""
_XMP = re.compile(rb"\b(?:xmp|xap):Rating" + _VALUE)
_MICROSOFT = re.compile(rb"\bMicrosoftPhoto:Rating" + _VALUE)
_STARS, _PERCENT = 0x4746, 0x4749
_EXIF_START = b"Exif\0\0"
_TIFF_STARTS = (b"II*\0", b"MM\0*")


class DamagedNotes(ValueError):
    """Notes that may hold a rating, and cannot be read."""


def rated_files(folder: Path) -> Iterator[Rated | Unreadable]:
    """Pictures below a folder that have a rating, and those whose notes are damaged."""
    for file in picture_files(folder):
        try:
            rating = rating_of(file)
        except DamagedNotes as error:
            yield Unreadable(str(error))
            continue
        if rating:
            yield Rated("stars", (file,), rating, where=str(file))


def rating_of(file: Path) -> int:
    """Rating of a picture file: 1 to 5, -1 for a rejected one, 0 for none.

    Raises:
        DamagedNotes: A file beside it, or its own notes, are damaged and show no rating.
        ValueError: A rating is no such number, or the file is no picture.
    """
    for sidecar in (file.with_name(f"{file.name}.xmp"), file.with_suffix(".xmp")):
        if sidecar.is_file():
            if sidecar.stat().st_size > _LARGEST_SIDECAR:
                raise ValueError(f"{sidecar} is larger than 4 MiB; it is no XMP file")
            if rating := _in_packet(sidecar.read_bytes(), sidecar):
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


def _in_packet(body: bytes, file: Path) -> int:
    """A rating in XMP that must be whole if it shows none."""
    try:
        is_wide = body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        body = (body.decode("utf-16").encode() if is_wide else body).strip(b"\0 \t\r\n")
        if rating := _in_text(body, file):
            return rating
        reader = expat.ParserCreate("utf-8" if is_wide else None)
        reader.StartDoctypeDeclHandler = _refuse_doctype
        reader.Parse(body, True)
    except (UnicodeError, expat.ExpatError) as error:
        raise DamagedNotes(f"{file}: its XMP is damaged ({error})") from error
    return 0


def _refuse_doctype(*declared: object) -> None:
    raise UnicodeError("a document type is declared")  # entities could unfold to anything


def _in_picture(picture: Any, file: Path) -> int:
    """What Pillow unpacks: compressed XMP of a PNG, and EXIF."""
    text = picture.info.get("XML:com.adobe.xmp") or picture.info.get("xmp") or b""
    text = text.encode() if isinstance(text, str) else text
    if text and (rating := _in_packet(text, file)):
        return rating
    exif, damage = _exif_of(picture)
    if rating := _stars(exif.get(_STARS, 0), "EXIF 0x4746", file):
        return rating
    if rating := _percent(exif.get(_PERCENT, 0), "EXIF 0x4749", file):
        return rating
    if damage:
        raise DamagedNotes(f"{file}: its EXIF is damaged ({damage})")
    return 0


def _exif_of(picture: Any) -> tuple[dict[int, Any], str]:
    """Tags that could be read, and what is wrong with the others; Pillow passes over those."""
    raw = picture.info.get("exif") or b""
    raw = raw.removeprefix(_EXIF_START) if isinstance(raw, bytes) else b""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            tags = dict(picture.getexif())
        except BROKEN as error:
            return {}, str(error)
    damage = [str(one.message) for one in told]
    if raw and not tags and not raw.startswith(_TIFF_STARTS):
        damage.append("it does not begin as EXIF does")
    return tags, "; ".join(damage)[:200].strip()


def _number(value: object, what: str, file: Path, least: int, most: int) -> int:
    try:
        number = float(value.decode() if isinstance(value, bytes) else value)  # type: ignore[arg-type]
        fits = number == int(number) and least <= number <= most
    except (ValueError, TypeError, OverflowError):
        number, fits = 0.0, False
    if not fits:
        given = value.decode(errors="replace") if isinstance(value, bytes) else value
        raise ValueError(
            f"{file}: {what} is {shortened(given)}; it must be a whole number, {least} to {most}"
        )
    return int(number)


def _stars(value: object, what: str, file: Path) -> int:
    return _number(value, what, file, -1, 5)


def _percent(value: object, what: str, file: Path) -> int:
    """1, 25, 50, 75 and 99 are one to five stars for Windows."""
    percent = _number(value, what, file, 0, 100)
    return 0 if percent == 0 else min(5, 1 + (percent + 12) // 25)
