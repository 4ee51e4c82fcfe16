"""Damage that any file may take: what disks, editors and transfers do to bytes."""

from __future__ import annotations

import random

__all__ = ["damaged_bytes"]


def damaged_bytes(body: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Damage a file at a random place; returns its bytes and what was done."""
    size = max(len(body), 1)
    start = rng.randrange(size)
    length = min(rng.choice([1, 1, 2, 8, 64, 512]), size - start)
    kind = rng.choice(["cut", "cut", "bit", "bit", "zeros", "noise", "removed", "doubled", "empty"])
    if kind == "empty":
        return b"", "emptied"
    if kind == "cut":
        return body[:start], f"cut after {start} of {size} bytes"
    if kind == "bit":
        changed = bytearray(body or b"\0")
        changed[start] ^= 1 << rng.randrange(8)
        return bytes(changed), f"a bit of byte {start} turned"
    if kind == "removed":
        return body[:start] + body[start + length :], f"{length} bytes at {start} taken out"
    if kind == "doubled":
        piece = body[start : start + length]
        return body[:start] + piece + body[start:], f"{length} bytes at {start} doubled"
    filler = bytes(length) if kind == "zeros" else rng.randbytes(length)
    return body[:start] + filler + body[start + length :], f"{length} bytes of {kind} at {start}"
