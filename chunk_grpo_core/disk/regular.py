"""Reading files that end: no pipe, no device."""

from __future__ import annotations

import errno
from pathlib import Path

__all__ = ["read_regular"]


def read_regular(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        OSError: It cannot be read, or it is a pipe, a socket or a device, whose reader may wait for
            ever.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device", str(path))
    return path.read_bytes()
