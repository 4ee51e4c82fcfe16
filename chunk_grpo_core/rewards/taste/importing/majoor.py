"""Ratings of Majoor AssetsManager, from a copy of its index.

``<output>/_mjr_index/assets.sqlite``: ``asset_metadata.rating`` (0: not rated, 1 to 5) belongs to
the asset with that ``asset_id``, whose file is ``assets.filepath``. The copy takes along what the
program has not yet written into the index itself (``-wal``), and the index is not touched.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ....settings.declared import shortened
from .rated import Rated

__all__ = ["INDEX", "majoor_index", "rated_assets"]

INDEX = Path("_mjr_index", "assets.sqlite")
_LARGEST = 4 * 2**30


def majoor_index(source: Path) -> Path | None:
    """The index that a file or a folder of pictures stands for; None without one."""
    for file in (source, source / INDEX, source / INDEX.name):
        if file.is_file() and file.suffix in (".sqlite", ".sqlite3", ".db"):
            return file
    return None


def rated_assets(index: Path) -> Iterator[Rated]:
    """All rated pictures of an index, by file.

    Raises:
        ValueError: It is another database, damaged, or a rating is none of 0 to 5.
    """
    if index.stat().st_size > _LARGEST:
        raise ValueError(f"{index} is larger than 4 GiB; it is no index of pictures")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "assets.sqlite")
        for ending in ("", "-wal"):
            part = index.with_name(index.name + ending)
            if part.is_file():
                shutil.copyfile(part, copy.with_name(copy.name + ending))
        rows = _rows(copy, index)
    for path, rating in rows:
        if not isinstance(path, str) or "\0" in path or type(rating) is not int:
            raise ValueError(
                f"{index}: an asset has the file {shortened(path)} and the rating "
                f"{shortened(rating)}; it must be a text and a whole number"
            )
        if not 0 <= rating <= 5:
            raise ValueError(f"{index}: {shortened(path)} has rating {rating}; it must be 0 to 5")
        if rating:
            yield Rated("stars", (Path(path),), rating, where=f"{index}: {shortened(path)}")


def _rows(copy: Path, index: Path) -> list[tuple[object, object]]:
    try:
        with closing(sqlite3.connect(copy)) as database:
            return database.execute(
                "SELECT a.filepath, m.rating FROM assets a JOIN asset_metadata m"
                " ON m.asset_id = a.id WHERE m.rating IS NOT NULL ORDER BY a.filepath"
            ).fetchall()
    except sqlite3.Error as error:
        raise ValueError(
            f"{index} is no index of Majoor AssetsManager that can be read ({error}); it needs the "
            "tables assets (id, filepath) and asset_metadata (asset_id, rating)"
        ) from error
