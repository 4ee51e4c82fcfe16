"""Pictures of one prompt that are shown together, on the disk: a page shows them after a restart.

    <taste>/batches/<id>.json    {"v": 1, "id": ..., "kind": "hearts", "shown": [...]}

The id is a hash of what is shown: the same pictures are the same batch. The files only say what can
be shown; what was picked is in ``picks.jsonl``, and stays true when they are deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ....disk.atomic import write_whole
from ....disk.regular import read_regular
from ....method.asking import WAYS
from ...safe_json import parse_json
from ..events import MOST_SHOWN, Shown, shown_of, shown_row
from ..picks import Taste

__all__ = ["WAYS", "Batch", "Key", "keep_batches", "read_batch", "read_batches"]

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Picture and prompt: what picks are about."""
_VERSION = 1
_NEWEST = 200
"""Batches that are read."""
_ID = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True)
class Batch:
    """Pictures of one prompt."""

    id: str
    shown: tuple[Shown, ...]
    kind: str
    """One of ``WAYS``: how it is shown first."""

    @property
    def prompt(self) -> str:
        """Empty where nobody knows it."""
        return self.shown[0].prompt

    @property
    def keys(self) -> tuple[Key, ...]:
        """Of each picture."""
        return tuple((one.picture, one.prompt) for one in self.shown)


def keep_batches(
    taste: Taste,
    pictures: Tensor,
    prompts: Sequence[str],
    *,
    kind: str = "hearts",
    seed: int | None = None,
    made: Mapping[str, Any] | None = None,
) -> list[Batch]:
    """Store pictures, and that they are shown: a batch for each prompt, at most 64 in one.

    Args:
        taste: Where.
        pictures: (B, H, W, 3) in 0..1.
        prompts: B texts.
        kind: One of ``WAYS``.
        seed: Of all of them.
        made: Whatever else is known; see ``Shown.made``.

    Raises:
        CannotWrite: The disk is full, or something else is in the way.
    """
    groups: dict[str, list[Shown]] = {}
    for index, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        facts = {"prompt": prompt, "seed": seed, "index": index, "made": dict(made or {})}
        groups.setdefault(prompt, []).append(taste.keep(picture, **facts))
    batches = [
        _batch(group[start : start + MOST_SHOWN], kind)
        for group in groups.values()
        for start in range(0, len(group), MOST_SHOWN)
    ]
    for batch in batches:
        row = {
            "v": _VERSION,
            "id": batch.id,
            "kind": kind,
            "shown": list(map(shown_row, batch.shown)),
        }
        write_whole(_file(taste, batch.id), json.dumps(row, ensure_ascii=False) + "\n")
    return batches


def read_batches(taste: Taste) -> list[Batch]:
    """The newest 200 batches, the newest last; what is damaged is passed over by name."""
    folder = taste.folder / "batches"
    files = [file for file in folder.glob("*.json") if _ID.fullmatch(file.stem)]
    files.sort(key=lambda file: (_written(file), file.name))
    batches: list[Batch] = []
    for file in files[-_NEWEST:]:
        try:
            batches.append(_read(file))
        except FileNotFoundError:  # deleted meanwhile
            continue
        except (ValueError, OSError) as error:
            log.warning("%s is passed over: %s", file, error)
    return batches


def read_batch(taste: Taste, name: str) -> Batch:
    """One batch, by its id.

    Raises:
        FileNotFoundError: There is none of this id.
        ValueError: Its file is damaged.
    """
    if not _ID.fullmatch(name) or not _file(taste, name).is_file():
        raise FileNotFoundError(f"there is no batch {name[:40]!r} in this taste; show it again")
    return _read(_file(taste, name))


def _batch(shown: Sequence[Shown], kind: str) -> Batch:
    facts = json.dumps([shown_row(one) for one in shown], sort_keys=True)
    return Batch(hashlib.sha256(facts.encode()).hexdigest()[:24], tuple(shown), kind)


def _read(file: Path) -> Batch:
    row = parse_json(read_regular(file))
    shown = row.get("shown") if isinstance(row, dict) and row.get("v") == _VERSION else None
    if not isinstance(shown, list) or not 1 <= len(shown) <= MOST_SHOWN:
        raise ValueError(f"{file.name} is no batch of pictures; delete it")
    kind = row.get("kind")
    batch = _batch([shown_of(one, file.name) for one in shown], kind if kind in WAYS else WAYS[0])
    if batch.id != file.stem or len({one.prompt for one in batch.shown}) > 1:
        raise ValueError(f"{file.name} was changed by hand; delete it")
    return batch


def _file(taste: Taste, name: str) -> Path:
    return taste.folder / "batches" / f"{name}.json"


def _written(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
