"""The command line. Results go to standard output, progress to standard error."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .checkpoint import RunFolder
from .cli_rewards import fetch, score
from .cli_serve import serve_reward
from .demo import DemoResult, run_demo, tiny_config
from .events import EvaluationProgress, Event, IterationEnd, PhaseProgress, RunStart
from .export import convert_lora, load_lora, save_lora
from .version import __version__

app = typer.Typer(
    name="chunk-grpo",
    help="Chunk-GRPO: align flow-matching image models with reward models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_screen = Console(stderr=True)


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
) -> None:
    """Chunk-GRPO: align flow-matching image models with reward models."""


@app.command()
def demo(
    algorithm: Annotated[
        Algorithm, typer.Option(help="chunk: chunks of 1, 2, 2, 3 steps. step: step-level GRPO.")
    ] = Algorithm.chunk,
    iterations: Annotated[int, typer.Option(min=1, help="Rollouts to train on.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads. 1 gives the same numbers every time.")
    ] = 1,
) -> None:
    """Train a LoRA on the embedded tiny FLUX and measure what it gained.

    Takes a few minutes on a CPU. The run folder keeps settings, metrics, samples, plots,
    checkpoints and the LoRA.
    """
    torch.set_num_threads(threads)
    with _clear_errors():
        config = tiny_config(algorithm.value, iterations, seed)
        run_dir = out or (_newest_demo() if resume else _free_demo())
        with _Bar() as bar:
            result = run_demo(
                config, run_dir, resume=resume, evaluation_seeds=pictures, listener=bar.listen
            )
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        _print_result(result)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .safetensors LoRA.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; must be new.")],
    to: Annotated[
        LoraLayout,
        typer.Option(
            help="native: ComfyUI, any architecture. diffusers: load_lora_weights, FLUX.1 only."
        ),
    ],
) -> None:
    """Write a LoRA with the layer names of ComfyUI or of diffusers.

    The function stays the same; the metadata is kept.
    """
    with _clear_errors():
        tensors, metadata = load_lora(source)
        if target.exists():
            raise FileExistsError(f"{target} exists already; choose another name")
        converted = convert_lora(tensors, to.value)
        typer.echo(save_lora(converted, target, metadata))


class _Bar:
    """One progress bar for every phase of a run."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=_screen,
        )
        self._tasks: dict[str, TaskID] = {}
        self._iterations = 1

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def _update(self, name: str, fraction: float, note: str | None = None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1.0, note="")
        task = self._tasks[name]
        self._progress.update(task, completed=fraction)
        if note is not None:
            self._progress.update(task, note=note)

    def listen(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, EvaluationProgress):
            name = {"before": "base model", "after": "with LoRA"}[event.which]
            self._update(name, event.fraction)
        elif isinstance(event, RunStart):
            self._iterations = event.iterations
            self._update("training", event.first_iteration / event.iterations)
        elif isinstance(event, PhaseProgress):
            self._update("training", (event.iteration + event.fraction) / self._iterations)
        elif isinstance(event, IterationEnd):
            row = event.metrics
            reward = row["reward_mean"]
            text = "no valid reward" if reward is None else f"reward {reward:.3f}"
            done = event.iteration + 1
            note = f"{done}/{self._iterations}  {text}"
            self._update("training", done / self._iterations, note)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Show a user's mistake as one line; let bugs keep their traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        _screen.print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        _screen.print("stopped; go on with --resume")
        raise typer.Exit(130) from None


app.command()(_clear_errors()(score))
app.command()(_clear_errors()(fetch))
app.command("serve-reward")(_clear_errors()(serve_reward))


def _demo_folders() -> list[Path]:
    return sorted(Path("runs").glob("demo-[0-9][0-9][0-9]"))


def _free_demo() -> Path:
    found = _demo_folders()
    number = int(found[-1].name.removeprefix("demo-")) + 1 if found else 1
    return Path("runs") / f"demo-{number:03d}"


def _newest_demo() -> Path:
    found = [path for path in _demo_folders() if RunFolder(path).config_file.exists()]
    if not found:
        raise FileNotFoundError("there is no demo run under runs/ to resume; start one first")
    return found[-1]


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
        f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})",
    )
    for name, title in (("attributes", "attributes right"), ("strict", "all five right")):
        old, new = before.extra_mean(name), after.extra_mean(name)
        table.add_row(title, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
    output = Console(file=sys.stdout)
    output.print(table)
    output.print(
        f"{len(outcome.rows)} iterations, {result.seconds:.0f} s in all; ratio error at the first "
        f"update {outcome.ratio_error_first_update:.1e}",
        highlight=False,
    )
    for path in (result.lora, *result.pictures):
        output.print(f"  {path}", highlight=False, soft_wrap=True)
