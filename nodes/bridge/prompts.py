"""Prompt files and wildcards in ComfyUI's input folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths

from ...chunk_grpo_core.disk.names import path_inside
from ...chunk_grpo_core.prompts.decoding import LARGEST_FILE, Tell, tell_log
from ...chunk_grpo_core.prompts.files import SUFFIXES, PromptLine, read_prompt_file
from ...chunk_grpo_core.prompts.wildcards import WildcardFolder

__all__ = ["NO_FILE", "files_digest", "prompt_files", "read_prompts", "wildcard_folder"]

#: The choice of a file input that reads nothing.
NO_FILE = "none"


def prompt_files() -> list[str]:
    """Names of the prompt files that lie in the input folder itself."""
    folder = Path(folder_paths.get_input_directory())
    prompt_like = (file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(file.name for file in prompt_like if file.is_file())


def read_prompts(name: str, tell: Tell = tell_log) -> list[PromptLine]:
    """Read a prompt file of the input folder; nothing for :data:`NO_FILE`.

    Args:
        name: Path inside the input folder.
        tell: Told what was guessed about the file.

    Raises:
        ValueError: There is no such file, it holds no prompts, or a line of it is wrong.
    """
    if name == NO_FILE:
        return []
    path = _inside_input(name)
    if not path.is_file():
        choices = ", ".join([NO_FILE, *prompt_files()])
        raise ValueError(
            f"there is no file {name!r} in ComfyUI's input folder; choose of: {choices}"
        )
    return read_prompt_file(path, tell)


def wildcard_folder(name: str, tell: Tell = tell_log) -> WildcardFolder:
    """The lists for ``__name__``, in a folder inside the input folder; it need not exist.

    Args:
        name: Path inside the input folder.
        tell: Told what was guessed about a file.

    Raises:
        ValueError: It is outside the input folder.
    """
    return WildcardFolder(_inside_input(name), tell)


def files_digest(names: list[str], wildcards: str | None) -> str:
    """Hash the contents of prompt files and, if a folder is given, of all wildcards in it.

    Raises:
        ValueError: A path is outside the input folder.
        OSError: There is no such file.
    """
    files = [(name, _inside_input(name)) for name in names if name != NO_FILE]
    if wildcards is not None:
        files += [(f"wildcard {path}", path) for path in wildcard_folder(wildcards).files]
    digest = hashlib.sha256()
    for name, path in files:
        size = path.stat().st_size  # what is too large is refused when it is read
        body = path.read_bytes() if size <= LARGEST_FILE else str(size).encode()
        digest.update(f"{name}\n{hashlib.sha256(body).hexdigest()}\n".encode())
    return digest.hexdigest()


def _inside_input(name: str) -> Path:
    """A path below the input folder; empty names the folder itself. Links on the disk may lead
    elsewhere: whoever runs the server has put them there."""
    folder, what = folder_paths.get_input_directory(), "ComfyUI's input folder"
    return path_inside(name, folder, what, links=True) if name.strip() else Path(folder)
