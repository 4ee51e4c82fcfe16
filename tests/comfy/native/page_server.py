"""Something in the place of ComfyUI's server, which a process without pages lacks."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def page_server(instance: Any) -> Iterator[None]:
    """While open, ``instance`` is ComfyUI's server; what stood in its place comes back."""
    before = sys.modules.get("server")
    server = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=instance)  # type: ignore[attr-defined]
    sys.modules["server"] = server
    try:
        yield
    finally:
        del sys.modules["server"]
        if before is not None:
            sys.modules["server"] = before
