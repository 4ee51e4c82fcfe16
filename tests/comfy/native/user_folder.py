"""A user folder of ComfyUI for one test, with what its owner allows."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path


@contextlib.contextmanager
def user_folder(lines=None):
    """Yield an empty user folder of ComfyUI, with a file of consent if lines are given."""
    import folder_paths

    with tempfile.TemporaryDirectory() as folder:
        before = folder_paths.get_user_directory()
        folder_paths.set_user_directory(folder)
        if lines is not None:
            Path(folder, "chunk_grpo_allow.txt").write_bytes(lines)
        try:
            yield Path(folder)
        finally:
            folder_paths.set_user_directory(before)
