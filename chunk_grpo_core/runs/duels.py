"""Blind duels on the disk: drawn once, answered on the command line or in a page.

    <parent>/001/duels.json     duels and answers (``measure/duels.py``)
    <parent>/001/01.png         both pictures of the first one, side by side, for people
    <parent>/001/01_left.png    each alone, for pages; and 01_right.png

``parent`` is ``duels`` in the folder of a run. Which picture is whose is in ``duels.json`` alone,
and :func:`duels_view` tells nobody before all are answered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk.atomic import write_whole
from ..disk.lock import locked
from ..disk.regular import read_regular
from ..measure.duels import Duel, duels_from_json, duels_to_json, result_of
from ..rewards.pixels import to_levels
from ..rewards.png import png_bytes
from ..rewards.safe_json import parse_json
from ..watch.pictures import enlargement, image_grid, save_png
from .folder import numbered_folder

__all__ = [
    "DUELS_FILE",
    "change_duels",
    "digest_of_pictures",
    "duels_view",
    "keep_duels",
    "newest_duels",
    "read_duels",
]

DUELS_FILE = "duels.json"
_PATIENCE = 10.0
"""Seconds to wait for whoever writes; an answer takes milliseconds."""


def digest_of_pictures(base: Sequence[Tensor], lora: Sequence[Tensor]) -> str:
    """A text that depends on all pictures, each (H, W, 3) in 0..1."""
    hashed = hashlib.sha256()
    for picture in (*base, *lora):
        hashed.update(to_levels(picture.detach().cpu()).contiguous().numpy().data)
    return hashed.hexdigest()


def keep_duels(
    parent: Path, duels: Sequence[Duel], base: Sequence[Tensor], lora: Sequence[Tensor]
) -> Path:
    """Store duels that nobody has answered, in a new folder; those that lie there already, with
    the same pictures, keep their folder and their answers.

    Args:
        parent: Of the folder.
        duels: One or more.
        base: A picture (H, W, 3) in 0..1 of each, without the LoRA.
        lora: The same with the LoRA.

    Returns:
        The folder.

    Raises:
        CannotWrite: The disk is full, or something else is in the way.
    """
    pairs = [
        (with_lora, without) if duel.lora_is_left else (without, with_lora)
        for duel, without, with_lora in zip(duels, base, lora, strict=True)
    ]
    files = {
        name: png_bytes(picture)
        for duel, pair in zip(duels, pairs, strict=True)
        for name, picture in zip(duel.sides, pair, strict=True)
    }
    if (same := _folder_of(parent, duels, files)) is not None:
        return same
    with numbered_folder(parent, "") as folder:
        for duel, pair in zip(duels, pairs, strict=True):
            save_png(_side_by_side(torch.stack(pair), duel.prompt), folder / duel.picture)
        for name, body in files.items():
            write_whole(folder / name, body)
        _write(folder, duels)
    return folder


def newest_duels(parent: Path) -> Path | None:
    """The folder of the duels that were drawn last; None if there are none."""
    return max((file.parent for file in parent.glob(f"*/{DUELS_FILE}")), default=None)


def read_duels(folder: Path) -> list[Duel]:
    """The duels of a folder.

    Raises:
        FileNotFoundError: There are none.
        ValueError: The file is damaged.
    """
    file = folder / DUELS_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there are no duels in {folder}")
    try:
        data = parse_json(read_regular(file))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); draw new duels") from error
    return duels_from_json(data, str(file))


def change_duels(folder: Path, change: Callable[[list[Duel]], list[Duel]]) -> list[Duel]:
    """Answer duels, or take answers back. Nobody else does so between reading and writing.

    Args:
        folder: Of the duels.
        change: From the duels to those that take their place.

    Returns:
        What is there now.

    Raises:
        FileNotFoundError: There are none.
        ValueError: The file is damaged; or what ``change`` raises.
        InUse: Somebody else has been writing for ten seconds.
        CannotWrite: The disk is full, or something else is in the way.
    """
    with locked(folder, wait=_PATIENCE) if folder.is_dir() else nullcontext():
        before = read_duels(folder)
        after = change(before)
        if after != before:
            _write(folder, after)
    return after


def duels_view(duels: Sequence[Duel]) -> dict[str, Any]:
    """What a person may see, JSON-ready.

    Returns:
        ``id`` of the duels, whatever was answered; ``answered``, a count; ``duels``, each with
        ``prompt``, ``pictures`` (file names, left and right), ``answer`` and, when all are
        answered, ``lora_is_left``; ``result``: None before, then the counts ``lora``, ``base`` and
        ``same``, ``share`` with ``low`` and ``high``, and ``text``.
    """
    count = sum(duel.answer is not None for duel in duels)
    is_done = count == len(duels)
    rows = [
        {"prompt": duel.prompt, "pictures": list(duel.sides), "answer": duel.answer}
        | ({"lora_is_left": duel.lora_is_left} if is_done else {})
        for duel in duels
    ]
    known = json.dumps(duels_to_json(_open(duels)), sort_keys=True)
    name = hashlib.sha256(known.encode()).hexdigest()[:16]
    return {"id": name, "answered": count, "duels": rows, "result": _result(duels, is_done)}


def _result(duels: Sequence[Duel], is_done: bool) -> dict[str, Any] | None:
    if not is_done:
        return None
    result = result_of(duels)
    share, low, high = result.share
    counts = {"lora": result.lora, "base": result.base, "same": result.same}
    return {**counts, "share": share, "low": low, "high": high, "text": result.sentence()}


def _open(duels: Sequence[Duel]) -> list[Duel]:
    """Without answers."""
    return [replace(duel, answer=None) for duel in duels]


def _folder_of(parent: Path, duels: Sequence[Duel], files: dict[str, bytes]) -> Path | None:
    """Where these duels lie already."""
    for file in sorted(parent.glob(f"*/{DUELS_FILE}"), reverse=True):
        folder = file.parent
        try:
            is_same = _open(read_duels(folder)) == _open(duels) and all(
                (folder / name).read_bytes() == body for name, body in files.items()
            )
        except (ValueError, FileNotFoundError):
            continue
        if is_same:
            return folder
    return None


def _write(folder: Path, duels: Sequence[Duel]) -> None:
    write_whole(folder / DUELS_FILE, json.dumps(duels_to_json(duels), indent=1) + "\n")


def _side_by_side(pair: Tensor, prompt: str) -> Tensor:
    captions = (f"1 (left): {prompt}", f"2 (right): {prompt}")
    return image_grid(pair, columns=2, scale=enlargement(pair, 256), captions=captions)
