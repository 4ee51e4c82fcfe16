"""Tensors as the bytes of a safetensors file; equal tensors and text give equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import Tensor

from ..optional import require

__all__ = ["tensor_bytes"]

_LENGTH = 8
"""Bytes in front of the header, which say how long it is; its end is aligned to as many."""


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Make the content of a safetensors file.

    The package itself puts the entries of the metadata in another order every time.

    Args:
        tensors: By name; contiguous, on the CPU, none of them sharing memory with another.
        metadata: Text for the header; sorted by name there.
    """
    plain: bytes = require("safetensors.torch", "To write a tensor file").save(dict(tensors))
    if not metadata:
        return plain
    start = _LENGTH + int.from_bytes(plain[:_LENGTH], "little")
    entries = json.loads(plain[_LENGTH:start])
    header = {"__metadata__": dict(sorted(metadata.items())), **entries}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _LENGTH)
    return b"".join((len(text).to_bytes(_LENGTH, "little"), text, memoryview(plain)[start:]))
