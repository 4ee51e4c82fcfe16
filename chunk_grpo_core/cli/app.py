"""The command line. Results go to standard output, progress to standard error."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
import shlex
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..configfile.record import read_settings
from ..lora.contents import blaming
from ..lora.files import convert_lora, load_lora, save_lora
from ..runs.folder import RunFolder, numbered_folder
from ..train.config import TrainConfig
from ..version import __version__
from .demo import DemoResult, run_demo, tiny_config
from .measure import analyze, evaluate, sample
from .outcome import AsJson, Command, CommandGroup
from .outputs import file_to_write, folder_to_write
from .progress import ProgressBar, clear_errors
from .rewards import fetch, score
from .serve import serve_reward
from .signals import stop_signals
from .train import presets, resume, train

app = typer.Typer(
    name="chunk-grpo",
    cls=CommandGroup,
    help="Chunk-GRPO: align flow-matching image models with reward models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train, resume, sample, analyze, evaluate, presets):
    app.command(cls=Command)(command)


class Algorithm(str, Enum):
    """What shares an importance ratio."""

    chunk = "chunk"
    step = "step"


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
def demo(
    algorithm: Annotated[
        Algorithm | None,
        typer.Option(
            help="chunk (default): chunks of 1, 2, 2, 3 steps. step: step-level GRPO.",
            show_default=False,
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Rollouts to train on, by default 60.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything, by default 0.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: the next free runs/demo-NNN.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out (default: the newest demo)."),
    ] = False,
    pictures: Annotated[
        int, typer.Option(min=1, help="Pictures of each held-out caption to measure on.")
    ] = 4,
    as_json: AsJson = False,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads. 1 gives the same numbers every time.")
    ] = 1,
) -> dict[str, object] | None:
    """Train a LoRA on the embedded tiny FLUX and measure what it gained.

    Takes a few minutes on a CPU. The run folder keeps settings, metrics, samples, plots,
    checkpoints and the LoRA.
    """
    torch.set_num_threads(threads)
    begun: Path | None = None
    with (
        clear_errors(lambda: _how_to_go_on(begun)),
        stop_signals() as signals,
        _demo_folder(out, resume) as run_dir,
        ProgressBar() as bar,
    ):
        begun = run_dir
        plan = algorithm and algorithm.value
        options = {"algorithm": plan, "iterations": iterations, "seed": seed}
        given = {name: value for name, value in options.items() if value is not None}
        config = _settings_to_resume(run_dir, given) if resume else tiny_config(**given)
        result = run_demo(
            config,
            run_dir,
            resume=resume,
            evaluation_seeds=pictures,
            listener=bar.listen,
            check_cancel=signals.check,
        )
    if as_json:
        return result.to_json()
    return _print_result(result)


@app.command(cls=Command)
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .safetensors LoRA.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; must be new.")],
    to: Annotated[
        LoraLayout,
        typer.Option(
            help="native: ComfyUI, any architecture. diffusers: load_lora_weights, FLUX.1 only."
        ),
    ],
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Write a LoRA with the layer names of ComfyUI or of diffusers.

    Files of kohya, peft, OneTrainer, SimpleTuner and XLabs are read too. What the LoRA does to the
    image model stays the same, and the metadata is kept; layers of text encoders are left out.
    """
    with clear_errors("nothing was written"):
        tensors, metadata = load_lora(source)
        if target.exists():
            raise FileExistsError(f"{target} exists already; choose another name")
        file_to_write(target, "OUT")
        with blaming(source):
            converted = convert_lora(tensors, to.value)
        written = save_lora(converted, target, metadata)
    return {"lora": str(written)} if as_json else typer.echo(written)


app.command(cls=Command)(clear_errors("nothing was written")(score))
app.command(cls=Command)(clear_errors("run it again")(fetch))
app.command("serve-reward", cls=Command)(clear_errors("no longer served")(serve_reward))


def _demo_folders() -> list[Path]:
    return sorted(Path("runs").glob("demo-[0-9][0-9][0-9]"))


def _demo_folder(out: Path | None, resume: bool) -> AbstractContextManager[Path]:
    if out or resume:
        return nullcontext(folder_to_write(out or _newest_demo()))
    return numbered_folder(Path("runs"), "demo-")


def _how_to_go_on(folder: Path | None) -> str:
    if folder is None or not RunFolder(folder).holds_a_run:
        return "nothing was written"
    return f"go on with: chunk-grpo demo --resume --out {shlex.quote(str(folder))}"


def _newest_demo() -> Path:
    demos = [path for path in _demo_folders() if RunFolder(path).holds_a_run]
    if not demos:
        raise FileNotFoundError("there is no demo run under runs/ to resume; start one first")
    return demos[-1]


def _settings_to_resume(folder: Path, given: Mapping[str, Any]) -> TrainConfig:
    """The settings of a demo's run.toml, with the options that were given."""
    config, chosen = read_settings(folder), tiny_config(**given)
    changed = {"plan" if name == "algorithm" else name for name in given}
    return replace(config, **{name: getattr(chosen, name) for name in changed})


def _print_result(result: DemoResult) -> None:
    table = Table(title="Held-out captions, fixed seeds, ODE sampling")
    for title in ("", "base model", "with LoRA", "gain (95 % interval)"):
        table.add_column(title, justify="left" if not title else "right")
    outcome = result.outcome
    before, after, gain = outcome.before, outcome.after, outcome.gain
    table.add_row(
        "reward",
        f"{before.mean:.3f}",
        f"{after.mean:.3f}",
        f"{gain.mean:+.3f} ({gain.bounds(3)})",
    )
    for name, title in (("attributes", "attributes right"), ("strict", "all five right")):
        old, new = before.extra_mean(name), after.extra_mean(name)
        table.add_row(title, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
    output = Console(file=sys.stdout)
    output.print(table)
    error = outcome.ratio_error_first_update
    ratio = "" if error is None else f"; ratio error at the first update {error:.1e}"
    time = f"{outcome.iterations} iterations, {result.seconds:.0f} s in all"
    output.print(f"{time}{ratio}", highlight=False)
    for warning in outcome.warnings:
        output.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    for path in (result.lora, *result.pictures):
        output.print(f"  {path}", highlight=False, soft_wrap=True)
