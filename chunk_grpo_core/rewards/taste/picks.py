"""The folder of a taste: a file of picks that only grows, and the pictures that were shown.

    <taste>/picks.jsonl          one pick a line (``events.py``)
    <taste>/pictures/<hash>.png  named by their pixels
    <taste>/batches/<id>.json    what a page shows (``picking/batches.py``); may be deleted
    <taste>/lock                 only there while somebody writes

A pick is one write under the lock of the system, flushed before the call returns. What a killed
process leaves is at most the beginning of a last line, which was never confirmed: reading passes it
over by name, and the next pick takes its place. Two files are merged by the ids of their picks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from ...disk.atomic import write_whole, writing
from ...disk.lock import FolderLock, locked
from ...disk.names import path_inside
from ...disk.regular import read_regular
from ...prompts.tables import jsonl_rows
from ..picture_files import load_picture
from ..pixels import to_levels
from ..png import png_bytes
from .events import Pick, Shown, counting, pick_line, pick_of

__all__ = ["PICKS_FILE", "Taste", "pixel_hash", "read_picks"]

log = logging.getLogger(__name__)

PICKS_FILE = "picks.jsonl"
_LARGEST = 64 * 2**20
"""Bytes of a file of picks: about a hundred thousand of them."""
_PATIENCE = 30.0
"""Seconds to wait for whoever writes; a pick takes milliseconds."""


def pixel_hash(picture: Tensor) -> str:
    """SHA-256 of size and pixels, in 8 bits, of a picture (H, W, 3) in 0..1."""
    levels = to_levels(picture.detach().cpu()).contiguous()
    height, width = levels.shape[:2]
    hashed = hashlib.sha256(f"{width}x{height} RGB8 ".encode())
    hashed.update(levels.numpy().data)
    return hashed.hexdigest()


def read_picks(file: Path) -> list[Pick]:
    """Read all picks of a file, each id once, in the order of its lines; none without a file.

    The beginning of a last line (a process was killed) is passed over with a warning.

    Raises:
        ValueError: A line is something else, or two different picks have one id; the message names
            file and line.
        OSError: The file cannot be read.
    """
    if not file.exists():
        return []
    if file.stat().st_size > _LARGEST:
        raise ValueError(
            f"{file} is larger than {_LARGEST // 2**20} MiB, the most that is read; split it into "
            "several tastes"
        )
    body, torn = _whole_lines(read_regular(file))
    if torn:
        log.warning(
            "%s ends in the beginning of a pick that was never confirmed (%d bytes, line %d); it "
            "is passed over",
            file, len(torn), body.count(b"\n") + 1,
        )  # fmt: skip
    picks: dict[str, Pick] = {}
    for where, row in jsonl_rows(_text(body, file), str(file), '{"v": 1, "kind": "duel", ...}'):
        assert not isinstance(row, str)
        pick = pick_of(row, where)
        if picks.setdefault(pick.id, pick) != pick:
            raise ValueError(f"{where}: another pick has the id {pick.id}; give one of them a new")
    return list(picks.values())


class Taste:
    """A folder of picks; it need not exist before the first one."""

    def __init__(self, folder: str | Path, roots: Sequence[str | Path] = ()) -> None:
        """Name the folder.

        Args:
            folder: Of the taste.
            roots: Further folders in which the ``path`` of a picture may lie; it is looked for in
                the folder itself first.
        """
        self.folder = Path(folder)
        self.roots = tuple(map(Path, roots))

    @property
    def file(self) -> Path:
        """The file of picks."""
        return self.folder / PICKS_FILE

    def picks(self) -> list[Pick]:
        """All of them; see :func:`read_picks`."""
        return read_picks(self.file)

    def counting(self) -> list[Pick]:
        """Those that count: neither undone nor skipped."""
        return counting(self.picks())

    def append(self, pick: Pick) -> None:
        """Add one pick at the end; it is on the disk when this returns.

        Raises:
            InUse: Somebody else has been writing for half a minute.
            CannotWrite: The disk is full, or something else is in the way.
        """
        line = f"{pick_line(pick)}\n".encode()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        with self._writing(), writing(self.file):
            handle = os.open(self.file, flags, 0o644)
            try:
                _end_the_last_line(handle)
                _write(handle, line)
                os.fsync(handle)
            finally:
                os.close(handle)

    def extend(self, picks: Iterable[Pick]) -> list[Pick]:
        """Add those whose ids are new, all or none of them.

        Returns:
            Those that were added.

        Raises:
            ValueError: An id stands for two different picks, or the file holds a line that is none.
            InUse: See :meth:`append`.
            CannotWrite: See :meth:`append`.
        """
        wanted = list(picks)

        def new(written: list[Pick]) -> list[Pick]:
            added: list[Pick] = []
            present = {pick.id: pick for pick in written}
            for pick in wanted:
                if pick.id not in present:
                    added.append(pick)
                if present.setdefault(pick.id, pick) != pick:
                    raise ValueError(
                        f"two different picks have the id {pick.id}: one in {self.file}, and one "
                        "that was to be added; give one of them a new id"
                    )
            return added

        return self.decide(new)

    def decide(self, what: Callable[[list[Pick]], Sequence[Pick]]) -> list[Pick]:
        """Add what follows from the picks that are there, all of it or nothing.

        Nobody else writes between the reading and the writing.

        Args:
            what: From all picks, in order, to those that are to be added.

        Returns:
            Those that were added.

        Raises:
            ValueError: The file holds a line that is no pick; or what ``what`` raises.
            InUse: See :meth:`append`.
            CannotWrite: See :meth:`append`.
        """
        with self._writing():
            added = list(what(self.picks()))
            if added:
                body = _whole_lines(self.file.read_bytes())[0] if self.file.exists() else b""
                body += b"\n" if body and not body.endswith(b"\n") else b""
                write_whole(self.file, body + "".join(f"{pick_line(p)}\n" for p in added).encode())
        return added

    def merge(self, other: Taste) -> list[Pick]:
        """Add the picks of another taste that are not here yet, and their pictures.

        Returns:
            The picks that were added.

        Raises:
            ValueError: See :meth:`extend`; or a picture of the other taste is not what it was.
            FileNotFoundError: A picture of the other taste is gone.
        """
        present = {pick.id for pick in self.picks()}
        copied = [
            Pick(**{**vars(pick), "shown": tuple(self._copied(other, one) for one in pick.shown)})
            if pick.id not in present
            else pick
            for pick in other.picks()
        ]
        return self.extend(pick for pick in copied if pick.id not in present)

    def keep(self, picture: Tensor, **facts: Any) -> Shown:
        """Store a picture (H, W, 3) in 0..1 beside the picks.

        Args:
            picture: It is rounded to 8 bits.
            facts: Fields of :class:`~chunk_grpo_core.rewards.taste.events.Shown`, such as
                ``prompt`` and ``seed``.

        Raises:
            CannotWrite: See :meth:`append`.
        """
        shown = Shown(picture=pixel_hash(picture), **facts)
        file = self._stored(shown.picture)
        if not file.is_file():
            write_whole(file, png_bytes(picture))
        return shown

    def picture(self, shown: Shown) -> Tensor:
        """Read a picture that was shown: (H, W, 3), float32 in 0..1.

        Raises:
            FileNotFoundError: It is gone.
            ValueError: Its file holds other pixels than those that were shown, or no picture, or
                its path leads out of the folder of the taste and of ``roots``.
        """
        file = self._file_of(shown)
        picture = load_picture(file)
        if pixel_hash(picture) != shown.picture:
            raise ValueError(
                f"{file} holds another picture than the one that was shown (its pixels have "
                "another hash); put the old one back, or undo the picks that show it"
            )
        return picture

    def _file_of(self, shown: Shown) -> Path:
        stored = self._stored(shown.picture)
        if stored.is_file() or shown.path is None:
            return stored
        files = [
            path_inside(shown.path, root, f"the folder {root}")
            for root in (self.folder, *self.roots)
        ]
        return next((file for file in files if file.is_file()), files[0])

    def _stored(self, picture: str) -> Path:
        return self.folder / "pictures" / f"{picture}.png"

    def _copied(self, other: Taste, shown: Shown) -> Shown:
        if not self._stored(shown.picture).is_file():
            self.keep(other.picture(shown))
        return Shown(**{**vars(shown), "path": None})

    def _writing(self) -> AbstractContextManager[FolderLock]:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return locked(self.folder, wait=_PATIENCE)


def _whole_lines(body: bytes) -> tuple[bytes, bytes]:
    """The lines that are whole, and the beginning of a last one, if there is one."""
    end = body.rfind(b"\n") + 1
    last = body[end:]
    if not last.strip() or _is_object(last):
        return body, b""
    return body[:end], last


def _is_object(line: bytes) -> bool:
    """Whether an editor only left out the end of the last line."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _end_the_last_line(handle: int) -> None:
    """Let the file end in a whole line: take away the beginning of one, or end it."""
    size = os.fstat(handle).st_size
    if not size:
        return
    start, last = size, b""
    while start and b"\n" not in last:
        start = max(0, start - 2**16)
        os.lseek(handle, start, os.SEEK_SET)
        last = os.read(handle, size - start)
    _, torn = _whole_lines(last)
    if torn:
        os.ftruncate(handle, size - len(torn))
    elif not last.endswith(b"\n"):
        _write(handle, b"\n")


def _write(handle: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        view = view[os.write(handle, view) :]


def _text(body: bytes, file: Path) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from error
