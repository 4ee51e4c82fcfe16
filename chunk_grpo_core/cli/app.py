"""The command line. Results go to standard output, progress to standard error."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..lora.files import convert_lora, load_lora, save_lora
from ..settings.blaming import blaming
from ..version import __version__
from .demo_command import demo
from .duels import duels
from .measure import analyze, evaluate, sample
from .models import models
from .outcome import AsJson, Command, CommandGroup
from .outputs import file_to_write
from .progress import clear_errors
from .rewards import fetch, score
from .serve import serve_reward
from .taste import taste_app
from .train import presets, resume, train

app = typer.Typer(
    name="chunk-grpo",
    cls=CommandGroup,
    help="Chunk-GRPO: align flow-matching image models with reward models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, train, resume, sample, analyze, evaluate, duels, presets, models):
    app.command(cls=Command)(command)


class LoraLayout(str, Enum):
    """Names of the layers in a LoRA file."""

    native = "native"
    diffusers = "diffusers"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show where an error happened; may stand at the end, too."),
    ] = False,
) -> None:
    """Chunk-GRPO: align flow-matching image models with reward models."""


@app.command(cls=Command)
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
            help="The model.type that the LoRA is for; needed only where its names fit two models.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Write a LoRA with the layer names of ComfyUI or of diffusers.

    Known in both are FLUX.1, FLUX.2, Stable Diffusion 3.5, Qwen-Image, Z-Image and Krea 2. Files of
    ai-toolkit, musubi-tuner, kohya, OneTrainer, SimpleTuner, peft and XLabs are read too. What the
    LoRA does to the image model stays the same, and the metadata is kept; layers of text encoders
    are left out.
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


app.command(cls=Command)(clear_errors("nothing was written")(score))
app.command(cls=Command)(clear_errors("run it again")(fetch))
app.command("serve-reward", cls=Command)(clear_errors("no longer served")(serve_reward))
app.add_typer(taste_app)
