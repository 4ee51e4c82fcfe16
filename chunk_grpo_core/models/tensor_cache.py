"""Keep nested tensors on disk by content: one safetensors file for each key, never pickle.

The structure around the tensors (lists, tuples, dicts, plain values) is JSON in the file's header.
What cannot be written so is refused, so that what comes out equals what went in to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk.atomic import write_whole
from ..optional import require

__all__ = ["TensorCache", "digest", "pack", "unpack"]

log = logging.getLogger(__name__)

_HEADER = "structure"


def pack(tree: Any) -> tuple[str, list[Tensor]]:
    """Take the tensors out of nested lists, tuples and dicts.

    Returns:
        The structure as JSON, and the tensors in its order.

    Raises:
        TypeError: Something in it is neither a plain dense tensor nor a plain value.
    """
    tensors: list[Tensor] = []

    def plain(value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is Tensor and value.layout == torch.strided:
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        if type(value) in (list, tuple):
            return {type(value).__name__: [plain(item) for item in value]}
        if type(value) is dict and all(type(key) is str for key in value):
            return {"dict": {key: plain(item) for key, item in value.items()}}
        raise TypeError(f"{type(value).__name__} is no plain value, tensor, list, tuple or dict")

    return json.dumps(plain(tree)), tensors


def unpack(structure: str, tensors: Sequence[Tensor]) -> Any:
    """Undo :func:`pack`."""

    def rebuilt(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {key: rebuilt(item) for key, item in content.items()}
        return {"list": list, "tuple": tuple}[kind](map(rebuilt, content))

    return rebuilt(json.loads(structure))


def digest(tree: Any) -> str:
    """Hash structure, types, shapes and bytes: 64 hexadecimal digits.

    Raises:
        TypeError: See :func:`pack`.
    """
    structure, tensors = pack(tree)
    hasher = hashlib.sha256(structure.encode())
    for tensor in tensors:
        hasher.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        body = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        hasher.update(body.numpy().data)
    return hasher.hexdigest()


class TensorCache:
    """A folder of at most ``limit`` bytes.

    When it is full the files that were not used for longest go, but none that this object has
    written or read: a set that is larger than the limit keeps its first part, and does not push
    itself out round after round.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder = Path(folder)
        self.limit = limit
        self._used: set[Path] = set()
        # All files, also what a killed process has left half written.
        entries = [(file, file.stat()) for file in self.folder.glob("*")]
        entries.sort(key=lambda entry: entry[1].st_mtime_ns)
        self._old = deque((file, status.st_size) for file, status in entries)
        self._size = sum(size for _, size in self._old)

    def load(self, key: str, device: torch.device | str = "cpu") -> Any | None:
        """What was stored under a key; None when there is nothing, or the file is damaged."""
        file = self._file(key)
        if not file.is_file():
            return None
        try:
            tree = _decode(file.read_bytes(), device)
        except (ValueError, LookupError) as error:
            log.warning("%s is damaged and will be written anew: %s", file, error)
            return None
        os.utime(file)
        self._used.add(file)
        return tree

    def store(self, key: str, tree: Any) -> bool:
        """Write a tree, never half; False when the limit leaves no room.

        Raises:
            TypeError: See :func:`pack`.
            OSError: The disk is full or read-only.
        """
        body = _encode(tree)
        file = self._file(key)
        if not self._make_room(len(body)):
            return False
        write_whole(file, body)
        self._size += len(body)
        self._used.add(file)
        return True

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _make_room(self, size: int) -> bool:
        while self._old and self._size + size > self.limit:
            file, freed = self._old.popleft()
            if file not in self._used:
                self._size -= freed
                file.unlink(missing_ok=True)
        return self._size + size <= self.limit


def _encode(tree: Any) -> bytes:
    save = require("safetensors.torch", "To cache tensors").save
    structure, tensors = pack(tree)
    # Clones: safetensors refuses tensors that share memory.
    named = {str(i): t.detach().cpu().contiguous().clone() for i, t in enumerate(tensors)}
    return save(named, metadata={_HEADER: structure})


def _decode(body: bytes, device: torch.device | str) -> Any:
    # Read whole, not mapped: a mapped file could not be replaced on Windows.
    safetensors = require("safetensors", "To read cached tensors")
    load = require("safetensors.torch", "To read cached tensors").load
    try:
        named = load(body)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    tensors = [named[str(i)].to(device) for i in range(len(named))]
    return unpack(header["__metadata__"][_HEADER], tensors)
