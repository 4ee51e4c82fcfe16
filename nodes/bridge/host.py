"""What nodes ask of the running ComfyUI: progress, interrupt, events, folders."""

from __future__ import annotations

import errno
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ...chunk_grpo_core.disk.atomic import CannotWrite, writing
from ...chunk_grpo_core.disk.names import path_inside, safe_name
from ...chunk_grpo_core.runs.folder import numbered_folder

__all__ = [
    "TASTE_FOLDER",
    "blocked",
    "check_interrupt",
    "listed_loras",
    "lora_file",
    "lora_name",
    "lora_path",
    "new_lora_path",
    "new_run_folder",
    "output_folder",
    "page_server",
    "progress_bar",
    "run_folder",
    "send_event",
    "show_progress",
    "show_text",
]

TASTE_FOLDER = "taste"
"""Where tastes lie, among the runs."""
_PREVIEW_SIZE = 512
_LORA_FOLDERS = 4


def progress_bar(total: int, node_id: str | None = None) -> comfy.utils.ProgressBar:
    """Begin a progress bar of ``total`` units on the node that is running, or on ``node_id``."""
    return comfy.utils.ProgressBar(total, node_id=node_id)


def show_progress(bar: comfy.utils.ProgressBar, value: int, picture: Tensor | None = None) -> None:
    """Move the bar and show a live preview on the node.

    Args:
        bar: From :func:`progress_bar`.
        value: Units done.
        picture: (H, W, 3) in 0..1.

    Raises:
        InterruptProcessingException: The user pressed Cancel.
    """
    preview = None
    if picture is not None:
        pixels = picture.detach().cpu().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
        image = Image.fromarray(pixels.numpy())
        # A limit would also enlarge small pictures, and blur them.
        preview = ("JPEG", image, _PREVIEW_SIZE if max(image.size) > _PREVIEW_SIZE else None)
    bar.update_absolute(value, preview=preview)


def check_interrupt() -> None:
    """Stop if the user pressed Cancel; for places where no layer of the MODEL runs.

    Raises:
        InterruptProcessingException: It must reach ComfyUI, so never catch it as an error.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()


def blocked() -> Any:
    """In the place of an output: nodes that take it do not run, without an error."""
    return ExecutionBlocker(None)


def page_server() -> Any:
    """ComfyUI's server, or None; not imported: where ComfyUI has not done so, nobody listens."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def send_event(name: str, data: Mapping[str, Any]) -> None:
    """Send a JSON event to every open page; without a server nothing happens."""
    server = page_server()
    if server is not None:
        server.send_sync(name, dict(data), None)


def show_text(text: str) -> None:
    """Show a line on the node that is running; without a server nothing happens."""
    server = page_server()
    if server is not None and server.last_node_id is not None:
        server.send_progress_text(text, server.last_node_id, server.client_id)


def output_folder() -> Path:
    """The folder of all runs, ``output/chunk_grpo``; it need not exist."""
    return Path(folder_paths.get_output_directory(), "chunk_grpo")


def run_folder(name: str) -> Path:
    """The folder of one run; it need not exist.

    Raises:
        ValueError: The name can be none, or the folder is a link that leads elsewhere.
    """
    if name.strip().lower() == TASTE_FOLDER:
        raise ValueError(f"{name!r} is the folder of tastes; choose another name for the run")
    return path_inside(safe_name(name), output_folder(), "output/chunk_grpo")


def new_run_folder() -> AbstractContextManager[Path]:
    """Make the folder of a run without a name: ``run_0001``, ``run_0002``, ...; removed again in
    the end if it is empty."""
    return numbered_folder(output_folder(), "run_", digits=4)


def _loras_folder() -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0])


def listed_loras() -> list[str]:
    """Names of all LoRA files as ComfyUI's loader nodes list them."""
    return folder_paths.get_filename_list("loras")


def lora_file(name: str) -> Path:
    """The file that ComfyUI lists as ``name``, in any of its loras folders.

    Raises:
        ValueError: There is none.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise ValueError(f"there is no LoRA file {name!r} in models/loras; press R to list anew")
    return Path(path)


def lora_path(name: str) -> Path:
    """The file of a LoRA called ``name`` in ComfyUI's first loras folder; it need not exist.

    Args:
        name: A name, or ``folder/name``; ``.safetensors`` is added where it is missing.

    Raises:
        ValueError: A part of it can be no file name, or there are too many.
    """
    names = [safe_name(part) for part in re.split(r"[/\\]", name.removesuffix(".safetensors"))]
    if len(names) > _LORA_FOLDERS + 1:
        raise ValueError(f"{name!r} has {len(names) - 1} folders; {_LORA_FOLDERS} are allowed")
    return Path(_loras_folder(), *names[:-1], f"{names[-1]}.safetensors")


@contextmanager
def new_lora_path(name: str) -> Iterator[Path]:
    """:func:`lora_path`, with ``_2``, ``_3``, ... behind a name that is taken.

    The file is made at once, empty, so that nobody else takes the name; it goes again if nothing
    was written to it.

    Raises:
        CannotWrite: The file cannot be made.
    """
    path = lora_path(name)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([path.stem], (f"{path.stem}_{n}" for n in itertools.count(2)))
    file = next(filter(_takes, (path.with_name(f"{stem}.safetensors") for stem in names)))
    try:
        yield file
    finally:
        with suppress(FileNotFoundError):
            if not file.stat().st_size:
                file.unlink()


def _takes(file: Path) -> bool:
    """Make a file; whether it was not there before."""
    try:
        with writing(file):
            file.touch(exist_ok=False)
    except CannotWrite as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def lora_name(path: Path) -> str:
    """The name of a file in the loras folder as ComfyUI's loader nodes list it."""
    return str(path.relative_to(_loras_folder()))
