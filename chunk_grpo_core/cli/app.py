"""The command line. Results go to standard output, progress to standard error.

The list of commands is shown without a module of theirs, which would import torch for a second.
"""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
from typing import Annotated, Any

import typer

from ..version import __version__
from .later import Later
from .outcome import CommandGroup

__all__ = ["COMMANDS", "app"]

COMMANDS = {
    "demo": ("demo_command", "Train a LoRA on the embedded tiny FLUX and measure what it gained."),
    "train": (
        "train",
        "Train a LoRA as a configuration file says, and measure what it gained.",
    ),
    "resume": (
        "train",
        "Go on with a run that was stopped or killed; its numbers are as if it had not been.",
    ),
    "sample": (
        "measure",
        "Draw pictures with the model, with or without a LoRA, without sampling noise.",
    ),
    "analyze": (
        "measure",
        "Measure how much each step changes a latent (relative L1), and propose chunks.",
    ),
    "evaluate": (
        "measure",
        "Compare a LoRA with the base model on held-out prompts, same noise, with an interval.",
    ),
    "duels": (
        "duels",
        "Was it worth it? Judge pairs of pictures, base against LoRA, without knowing which is "
        "which.",
    ),
    "presets": (
        "train",
        "List the presets, or print one as a configuration file with every key explained.",
    ),
    "models": (
        "models",
        "List families of models: published checkpoints, sizes, licences, defaults, what was "
        "tested.",
    ),
    "convert": ("convert", "Write a LoRA with the layer names of ComfyUI or of diffusers."),
    "score": ("rewards", "Score pictures with a reward."),
    "fetch": ("rewards", "Download the files of a reward."),
    "serve-reward": ("serve", "Lend a reward to other processes and machines, until Ctrl-C."),
    "taste": (
        "taste",
        "Your own taste as a reward: picks, imports, heads and reports (docs/taste.md).",
    ),
}
"""Name of a command or group -> the module here that defines it, and its first sentence."""


class _AllCommands(CommandGroup):
    """The commands of the table."""

    def __init__(self, **settings: Any) -> None:
        """See typer."""
        super().__init__(**settings)
        for name, (module, sentence) in COMMANDS.items():
            self.add_command(Later(name, module, sentence))  # type: ignore[arg-type]


app = typer.Typer(
    name="chunk-grpo",
    cls=_AllCommands,
    help="Chunk-GRPO: align flow-matching image models with reward models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
