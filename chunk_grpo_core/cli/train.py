"""Commands that start and continue a training."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..configfile.reading import read_config_file
from ..configfile.run_config import RunConfig
from ..configfile.writing import preset_text
from ..models.registry import FAMILIES
from ..presets import PRESETS, Preset
from ..presets.cost import preset_units
from ..processes.environment import is_launched
from ..processes.launch import TIMEOUT, asks_for_sharding, join_processes
from ..runs.folder import RunFolder, numbered_folder
from ..runs.start import TrainedRun
from ..runs.start import check as check_run
from ..runs.start import resume as resume_run
from ..runs.start import train as train_run
from .answers import TerminalAnswers
from .outcome import AsJson
from .outputs import folder_to_write
from .progress import ProgressBar, clear_errors
from .signals import stop_signals

__all__ = ["Changes", "presets", "resume", "train"]


Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value; paths start at the file's folder. May be repeated.",
    ),
]
Shard = Annotated[
    bool | None,
    typer.Option(
        "--shard/--no-shard",
        help="Several processes: spread the frozen weights over them (FSDP2). Default: as "
        "accelerate's configuration says, else no.",
        show_default=False,
    ),
]
SplitGroups = Annotated[
    bool, typer.Option("--split-groups", help="Several processes: let them share groups, too.")
]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", help="Several processes: longest time that one waits for the others."
    ),
]


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to train, and how.")],
    out: Annotated[
        Path | None, typer.Option(help="Run folder; must be new. Default: run.folder of the file.")
    ] = None,
    changes: Changes = None,
    shard: Shard = None,
    split_groups: SplitGroups = False,
    timeout: Timeout = TIMEOUT,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Do not train: try a little, keep nothing, and say how long the training will "
            "take, whether it fits into memory, and whether the reward sees differences.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Train a LoRA as a configuration file says, and measure what it gained.

    A file needs little: a preset fills in what it does not say.

        preset = "safe-lora"
        model.type = "flux"
        model.path = "black-forest-labs/FLUX.1-dev"
        prompts.file = "prompts.txt"
        reward.name = "target_colour"

    'chunk-grpo presets --write NAME' prints a whole file with every key explained. The run folder
    keeps settings, metrics, samples, plots, checkpoints and lora.safetensors; 'chunk-grpo resume'
    goes on with it. Behind torchrun or 'accelerate launch' the processes share the prompts of each
    iteration (docs/distributed.md).
    """
    if check:
        others = {"--out": out, "--shard": shard, "--split-groups": split_groups or None}
        return _check(config, changes or (), others, as_json)
    folder: Path | None = None
    with (
        clear_errors(lambda: _how_to_go_on(folder)),
        stop_signals() as signals,
        join_processes(timeout=timeout, split_groups=split_groups) as processes,
        ExitStack() as stack,
        ProgressBar() as bar,
    ):

        def read() -> tuple[RunConfig, Path]:
            settings = read_config_file(config, changes or ())
            if out is not None:
                return settings, folder_to_write(out)
            return settings, stack.enter_context(_new_folder(settings))

        settings, folder = processes.from_writer(read)
        run = train_run(
            settings,
            folder,
            listener=bar.listen,
            check_cancel=signals.check,
            goes_on=TerminalAnswers().goes_on,
            processes=processes,
            shard=asks_for_sharding() if shard is None else shard,
        )
    return _print_run(run, as_json) if processes.is_writer else None


def _check(
    file: Path, changes: Sequence[str], others: Mapping[str, object], as_json: bool
) -> dict[str, object] | None:
    """Say what a training will take; ``others`` are options that have no effect here."""
    with clear_errors("nothing was written"), stop_signals() as signals, ProgressBar() as bar:
        if given := [name for name, value in others.items() if value is not None]:
            raise ValueError(
                f"{given[0]} has no effect with --check, which keeps nothing and runs "
                "in one process; leave it out"
            )
        if is_launched():
            raise ValueError("--check runs in one process; start it without a launcher")
        checked = check_run(
            read_config_file(file, changes), listener=bar.listen, check_cancel=signals.check
        )
    if as_json:
        return checked.to_json()
    typer.echo("\n".join(checked.lines()))
    return None


def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="A run of train or demo.")],
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help="Iterations in all, to train for longer; --set iterations=N."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting; the run remembers it. May be repeated. Settings that must stay "
            "are refused by name (docs/command_line.md).",
        ),
    ] = None,
    shard: Shard = None,
    split_groups: SplitGroups = False,
    timeout: Timeout = TIMEOUT,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Go on with a run that was stopped or killed; its numbers are as if it had not been.

    Behind torchrun or 'accelerate launch' there may be more processes than before, or fewer.
    """
    changed = [*(changes or ()), *([f"iterations={iterations}"] if iterations else [])]
    with (
        clear_errors(lambda: _how_to_go_on(folder, changed)),
        stop_signals() as signals,
        join_processes(timeout=timeout, split_groups=split_groups) as processes,
        ProgressBar() as bar,
    ):
        if iterations and any(
            text.partition("=")[0].strip() == "iterations" for text in changed[:-1]
        ):
            raise ValueError("--iterations and --set iterations were both given; give one of them")
        run = resume_run(
            folder,
            changes=changed,
            listener=bar.listen,
            check_cancel=signals.check,
            goes_on=TerminalAnswers().goes_on,
            processes=processes,
            shard=asks_for_sharding() if shard is None else shard,
        )
    return _print_run(run, as_json) if processes.is_writer else None


def presets(
    write: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print this preset as a whole file.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(FAMILIES),
            help="Family to write it for. tiny (default) runs as it is; the others need your "
            "paths.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """List the presets, or print one as a configuration file with every key explained.

    For example: chunk-grpo presets --write safe-lora --model flux > my.toml
    """
    with clear_errors("nothing was written"):
        if model is not None and write is None:
            raise ValueError("--model is the family that --write is for; name a preset, too")
        text = None if write is None else preset_text(write, model or "tiny")
    if as_json and text is not None:
        return {"name": write, "text": text}
    if as_json:
        return {"presets": [_listed(preset) for preset in PRESETS.values()]}
    if text is not None:
        return typer.echo(text, nl=False)
    for preset in PRESETS.values():
        units = preset_units(preset)
        cost = "by its plan" if units is None else f"{units.total:.0f} units"
        typer.echo(f"{preset.name:12} {cost:>11}  {preset.title}")
    typer.echo(
        "\nA unit is one sample through the model once, of one picture; with gradients it is three."
    )
    return None


def _listed(preset: Preset) -> dict[str, object]:
    units = preset_units(preset)
    cost = units and round(units.total, 2)
    return {"name": preset.name, "title": preset.title, "units_per_picture": cost}


def _how_to_go_on(folder: Path | None, changes: Sequence[str] = ()) -> str:
    sees_folder = os.environ.get("RANK", "0") == "0"  # other machines may not
    if folder is None or (sees_folder and not RunFolder(folder).holds_a_run):
        return "nothing was written"
    # Changes are recorded once training begins; before that they must be given again.
    again = "".join(f" --set {shlex.quote(change)}" for change in changes)
    launched = " (alone, or with a launcher and any number of processes)" if is_launched() else ""
    return f"go on with: chunk-grpo resume {shlex.quote(str(folder))}{again}{launched}"


def _new_folder(config: RunConfig) -> AbstractContextManager[Path]:
    """``run.folder``, or the next of runs/NAME-001, runs/NAME-002, ..."""
    if config.run.folder:
        return nullcontext(Path(config.run.folder))
    return numbered_folder(Path("runs"), f"{config.name}-")


def _print_run(run: TrainedRun, as_json: bool) -> dict[str, object] | None:
    outcome = run.outcome
    before, after = outcome.before, outcome.after
    gain = outcome.gain if outcome.is_measured else None
    if as_json:
        return {
            "reward_before": before.mean if gain else None,
            "reward_after": after.mean if gain else None,
            "gain": gain and gain.mean,
            "gain_ci95": gain and [gain.low, gain.high],
            "ratio_error_first_update": outcome.ratio_error_first_update,
            "iterations": outcome.iterations,
            **outcome.warnings_json(),
            "run_dir": str(run.folder),
            "lora": str(run.files.lora),
        }
    output = Console(file=sys.stdout)
    gained = (
        f"{outcome.reward}: {before.mean:.{gain.digits}f} -> {after.mean:.{gain.digits}f} on "
        f"held-out prompts, gain {gain.mean:+.{gain.digits}f} ({gain.interval()})"
        if gain
        else f"no held-out prompt was scored; was it worth it? chunk-grpo duels {run.folder}"
    )
    output.print(gained, highlight=False, markup=False, soft_wrap=True)
    for warning in outcome.warnings:
        output.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    for path in (run.files.lora, *run.files.pictures):
        output.print(f"  {path}", highlight=False, soft_wrap=True)
    return None
