"""Bytes of a text file -> text, whatever program wrote it.

    with a byte order mark    UTF-8, UTF-16 or UTF-32, as the mark says
    without                   UTF-8; or UTF-16, if every other byte is 0; or Windows-1252, the
                              encoding of Western European editors, if single letters need it

What was guessed is told. Text of other old encodings (Shift-JIS, GBK, Windows-1251) would come out
as a row of wrong letters, so it is refused.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["LARGEST_FILE", "Tell", "read_text", "tell_log"]

Tell = Callable[[str], object]
"""Told, in a sentence, what was guessed about a file."""

LARGEST_FILE = 32 * 2**20
"""Bytes; text files that are larger are refused before they are read."""

_log = logging.getLogger(__name__)

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like UTF-16's, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_FOREIGN_RUN = re.compile(rb"(?!([\x80-\xff])\1{3})[\x80-\xff]{4}")
"""Four different letters beyond ASCII in a row: no word of Western Europe has them."""
_LETTERS = re.compile(rb"[^\s\x80-\xff]|([\x80-\xff])")


def tell_log(sentence: str) -> None:
    """Write to the log what was guessed."""
    _log.warning(sentence)


def read_text(path: Path, tell: Tell = tell_log) -> str:
    """Read a text file; a byte order mark is left out, line ends are kept.

    Args:
        path: A file of at most :data:`LARGEST_FILE` bytes.
        tell: Told which encoding was taken, if the file does not say it.

    Raises:
        FileNotFoundError: There is no such file, or it is no ordinary file.
        ValueError: It is too large, in an unknown encoding, or no text; the message names the line.
    """
    if not path.is_file():
        is_there = path.exists()
        raise FileNotFoundError(
            f"{path} is not an ordinary file" if is_there else f"there is no prompt file {path}"
        )
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(
            f"{path.name} is larger than {LARGEST_FILE // 2**20} MiB, the most that is read; "
            "split it into several files"
        )
    text, guess = _decoded(path.read_bytes(), path.name)
    text = text.rstrip("\x1a")  # the end of a file in DOS
    if control := _CONTROL.search(text):
        raise ValueError(
            f"{path.name}, line {_line(text[: control.start()])}: holds the control character "
            f"{control[0]!r}, so it is not plain text"
        )
    if guess:
        tell(guess)
    return text


def _decoded(body: bytes, name: str) -> tuple[str, str]:
    """The text, and what was guessed."""
    marked = next((encoding for mark, encoding in _MARKS if body.startswith(mark)), None)
    encoding = marked or _wide(body) or "utf-8"
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        line = _line(body[: error.start].decode(encoding, "ignore"))
        if encoding != "utf-8":
            raise ValueError(
                f"{name}, line {line}: begins like {encoding.upper()} text, but is not; save the "
                "file as UTF-8"
            ) from error
        if not _is_western(body):
            raise ValueError(f"{name}, line {line}: not UTF-8 text; save the file as UTF-8") from (
                error
            )
        return body.decode("cp1252"), (
            f"{name} is not UTF-8; read as Windows-1252. See whether line {line} is right, or save "
            "the file as UTF-8."
        )
    if encoding in ("utf-16-le", "utf-16-be"):
        return text, f"{name} has no byte order mark; read as {encoding.upper()}."
    return text, ""


def _wide(body: bytes) -> str | None:
    """UTF-16 without a mark: ASCII characters leave every other byte 0."""
    sample = body[:4096]
    pairs = len(sample) // 2
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if pairs and sample[first::2].count(0) > 0.7 * pairs and 0 not in sample[1 - first :: 2]:
            return encoding
    return None


def _is_western(body: bytes) -> bool:
    """Whether bytes that are not UTF-8 look like a Western language in Windows-1252."""
    letters = _LETTERS.findall(body)
    beyond_ascii = len(letters) - letters.count(b"")
    try:
        body.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return not _FOREIGN_RUN.search(body) and 2 * beyond_ascii < len(letters)


def _line(before: str) -> int:
    """Number of the line, from 1, on which a text ends."""
    return len(re.findall(r"\r\n|\n|\r", before)) + 1
