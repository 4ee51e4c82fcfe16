"""``chunk-grpo convert``."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..lora.files import convert_lora, load_lora, save_lora
from ..settings.blaming import blaming
from .outcome import AsJson
from .outputs import file_to_write
from .progress import clear_errors

__all__ = ["convert"]


class LoraLayout(str, Enum):
    """Names of the layers in a LoRA file."""

    native = "native"
    diffusers = "diffusers"


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .safetensors LoRA.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; must be new.")],
    to: Annotated[
        LoraLayout,
        typer.Option(help="native: ComfyUI's names. diffusers: those of load_lora_weights."),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="The model.type (or lumina2, hidream) that the LoRA is for; needed only where its "
            "names fit two models.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Write a LoRA with the layer names of ComfyUI or of diffusers.

    Known in both are FLUX.1, FLUX.2, Stable Diffusion 3.5, Qwen-Image, Z-Image, Krea 2, Lumina 2
    and HiDream-I1. Files of ai-toolkit, musubi-tuner, kohya, OneTrainer (OMI, too), SimpleTuner,
    peft and XLabs are read. What the LoRA does to the image model stays the same, and the metadata
    is kept; layers of text encoders are left out.
    """
    with clear_errors("nothing was written"):
        tensors, metadata = load_lora(source)
        if target.exists():
            raise FileExistsError(f"{target} exists already; choose another name")
        file_to_write(target, "OUT")
        with blaming(source):
            converted = convert_lora(tensors, to.value, model or None)
        written = save_lora(converted, target, metadata)
    return {"lora": str(written)} if as_json else typer.echo(written)
