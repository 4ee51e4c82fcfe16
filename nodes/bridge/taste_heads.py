"""Tastes of this ComfyUI: one folder each below ``output/chunk_grpo/taste``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ...chunk_grpo_core.disk.names import path_inside, safe_name
from ...chunk_grpo_core.rewards.taste.picks import PICKS_FILE, Taste
from ...chunk_grpo_core.settings.declared import shortened
from .host import TASTE_FOLDER, output_folder

__all__ = [
    "EXAMPLE",
    "existing_taste",
    "find_head",
    "head_file",
    "heads_state",
    "named_taste",
    "picks_state",
    "taste_of_head",
    "tastes_folder",
]

EXAMPLE = "example"
"""Name of the taste that comes with the pack."""
_EXAMPLE_FOLDER = Path(__file__).parents[2] / "example_workflows" / "example_taste"
_SHOWN = "output/chunk_grpo/taste"


def tastes_folder() -> Path:
    """The folder of all tastes, ``output/chunk_grpo/taste``; it need not exist."""
    return output_folder() / TASTE_FOLDER


def named_taste(name: str) -> Taste:
    """The taste called ``name``; it need not exist. Its pictures may lie in output and input, too.

    Raises:
        ValueError: The name can be none, or the folder is a link that leads elsewhere.
    """
    roots = (folder_paths.get_output_directory(), folder_paths.get_input_directory())
    return Taste(path_inside(safe_name(name), tastes_folder(), _SHOWN), roots)


def head_file(name: str) -> Path:
    """The file of the head of a taste, ``<name>/<name>.safetensors``; it need not exist.

    Raises:
        ValueError: See :func:`named_taste`.
    """
    return named_taste(name).folder / f"{safe_name(name)}.safetensors"


def existing_taste(name: str) -> Taste:
    """The taste called ``name``; ``example`` is put there if nobody has one of that name.

    Raises:
        ValueError: See :func:`named_taste`.
        FileNotFoundError: It has no picks; the message names those that there are.
    """
    taste = named_taste(name)
    if not taste.file.is_file() and safe_name(name) == EXAMPLE:
        taste.merge(Taste(_EXAMPLE_FOLDER))
    if not taste.file.is_file():
        others = sorted(file.parent.name for file in tastes_folder().glob(f"*/{PICKS_FILE}"))
        present = f"there are: {', '.join(others)}" if others else "there are none yet"
        raise FileNotFoundError(
            f"taste: there are no picks of {shortened(name)} in {_SHOWN} ({present}); pick some "
            "with Pick Pictures, or import ratings with 'chunk-grpo taste import' "
            f"({taste.folder})"
        )
    return taste


def find_head(file: str) -> Path | None:
    """The head that ``file`` names below the tastes: ``<name>``, or a path to the file; or none.

    Raises:
        ValueError: The path leads out of the folder.
    """
    if not file.endswith(".safetensors") and not re.search(r"[/\\]", file):
        file = f"{file}/{file}.safetensors"
    path = path_inside(file, tastes_folder(), _SHOWN)
    return path if path.is_file() else None


def taste_of_head(head: Path | None) -> Taste | None:
    """The taste in whose folder a head lies, if it is one of ``tastes_folder``."""
    if head is None or head.parent.parent != tastes_folder():
        return None
    return named_taste(head.parent.name)


def picks_state(name: str | None) -> str:
    """What changes whenever picks are added; cheap, nothing is read.

    Args:
        name: Of the taste; None, where ComfyUI does not know it yet: of all tastes.
    """
    every = tastes_folder().glob(f"*/{PICKS_FILE}")
    return _state(every if name is None else [named_taste(name).file])


def heads_state(file: str | None) -> str:
    """What changes whenever the head that ``file`` names is written; None: any head."""
    if file is None:
        return _state(tastes_folder().glob("*/*.safetensors"))
    head = find_head(file.strip()) if file.strip() else None
    return _state([head] if head else [])


def _state(files: Iterable[Path]) -> str:
    facts = []
    for file in sorted(files):
        if file.is_file():
            stat = file.stat()
            facts.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}")
    return "\n".join(facts)
