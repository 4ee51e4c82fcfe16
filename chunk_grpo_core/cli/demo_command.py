"""``chunk-grpo demo``: its options, its folders, and its tables."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..configfile.record import read_document, read_settings
from ..runs.folder import RunFolder, numbered_folder
from ..train.config import TrainConfig
from .demo import DemoResult, run_demo, tiny_config
from .outcome import AsJson
from .outputs import folder_to_write
from .progress import ProgressBar, clear_errors
from .signals import stop_signals

__all__ = ["demo"]

_COMPARED = ("chunk", "forward")
_TITLE = "Held-out captions, fixed seeds, ODE sampling"
_EXTRAS = {"attributes": "attributes right", "strict": "all five right", "clean": "clean"}
"""Further numbers of the reward, by their titles."""


class Algorithm(str, Enum):
    """The demo's recipes."""

    chunk = "chunk"
    step = "step"
    forward = "forward"


def demo(
    algorithm: Annotated[
        Algorithm | None,
        typer.Option(
            help="chunk (default): Chunk-GRPO, which trains the first chunk of a noisy rollout. "
            "step: the same steps one by one. forward: the forward form, on finished pictures.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run chunk and forward, one after the other.")
    ] = False,
    iterations: Annotated[
        int | None,
        typer.Option(min=1, help="Rollouts to train on, by default 50, or 40 (forward)."),
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
        int | None,
        typer.Option(min=1, help="Pictures of each held-out caption to measure on, by default 4."),
    ] = None,
    as_json: AsJson = False,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads. 1 gives the same numbers every time.")
    ] = 1,
) -> dict[str, object] | None:
    """Train a LoRA on the embedded tiny FLUX and measure what it gained.

    Takes a minute or two on a CPU. The run folder keeps settings, metrics, samples, plots,
    checkpoints and the LoRA; with --compare it holds one folder for each algorithm.
    """
    torch.set_num_threads(threads)
    if compare and algorithm is not None:
        raise typer.BadParameter("--compare runs chunk and forward; leave --algorithm out")
    given: dict[str, Any] = {"iterations": iterations, "seed": seed}
    if algorithm is not None:
        given["algorithm"] = algorithm.value
    given = {name: value for name, value in given.items() if value is not None}
    begun: Path | None = None
    with (
        clear_errors(lambda: _how_to_go_on(begun, compare)),
        stop_signals() as signals,
        _demo_folder(out, resume, compare) as folder,
    ):

        def run(run_dir: Path, given: Mapping[str, Any], *, resume: bool) -> DemoResult:
            nonlocal begun
            begun = run_dir
            config = _settings_to_resume(run_dir, given) if resume else tiny_config(**given)
            with ProgressBar() as bar:
                return run_demo(
                    config,
                    run_dir,
                    resume=resume,
                    evaluation_seeds=pictures or _pictures_of(run_dir, resume),
                    listener=bar.listen,
                    check_cancel=signals.check,
                )

        if compare:
            results = _compared(folder, given, run)
        else:
            results = {"": run(folder, given, resume=resume)}
    if not compare:
        return results[""].to_json() if as_json else _print_result(results[""])
    if as_json:
        return {name: result.to_json() for name, result in results.items()}
    return _print_comparison(results)


def _compared(
    folder: Path, given: Mapping[str, Any], run: Callable[..., DemoResult]
) -> dict[str, DemoResult]:
    """Run each algorithm in a folder of its own; those that were begun go on."""
    results = {}
    for name in _COMPARED:
        run_dir = folder / name
        is_begun = RunFolder(run_dir).holds_a_run
        results[name] = run(run_dir, {**given, "algorithm": name}, resume=is_begun)
    return results


def _demo_folder(out: Path | None, resume: bool, compare: bool) -> AbstractContextManager[Path]:
    name = "compare-" if compare else "demo-"
    if out or resume:
        return nullcontext(folder_to_write(out or _newest(name, compare)))
    return numbered_folder(Path("runs"), name)


def _newest(name: str, compare: bool) -> Path:
    folders = sorted(Path("runs").glob(f"{name}[0-9][0-9][0-9]"))
    begun = [path for path in folders if _holds_a_run(path / _COMPARED[0] if compare else path)]
    if not begun:
        raise FileNotFoundError("there is no demo run under runs/ to resume; start one first")
    return begun[-1]


def _holds_a_run(folder: Path) -> bool:
    return RunFolder(folder).holds_a_run


def _how_to_go_on(folder: Path | None, compare: bool) -> str:
    if folder is None or not _holds_a_run(folder):
        return "nothing was written"
    option, out = (" --compare", folder.parent) if compare else ("", folder)
    return f"go on with: chunk-grpo demo{option} --resume --out {shlex.quote(str(out))}"


def _settings_to_resume(folder: Path, given: Mapping[str, Any]) -> TrainConfig:
    """The settings of a demo's run.toml, with the options that were given."""
    config, chosen = read_settings(folder), tiny_config(**given)
    recipe = (chosen.algorithm, chosen.plan)
    if "algorithm" in given and recipe != (config.algorithm, config.plan):
        return chosen  # which is refused by name
    changed = given.keys() - {"algorithm"}
    return replace(config, **{name: getattr(chosen, name) for name in changed})


def _pictures_of(folder: Path, resume: bool) -> int:
    """Those that the run was begun with, or 4."""
    return int(read_document(folder)["run"]["pictures"]) if resume else 4


def _print_result(result: DemoResult) -> None:
    table = Table(title=_TITLE)
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
    for name, title in _EXTRAS.items():
        old, new = before.extra_mean(name), after.extra_mean(name)
        table.add_row(title, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
    output = Console(file=sys.stdout)
    output.print(table)
    error = outcome.ratio_error_first_update
    ratio = "" if error is None else f"; ratio error at the first update {error:.1e}"
    output.print(f"{_length(result)}{ratio}", highlight=False)
    _print_files(output, result)


def _print_comparison(results: Mapping[str, DemoResult]) -> None:
    """Base -> LoRA of each; the base is measured with the grid of the recipe."""
    table = Table(title=_TITLE)
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    outcomes = [result.outcome for result in results.values()]
    gains = [outcome.gain for outcome in outcomes]
    table.add_row("reward", *(f"{o.before.mean:.3f} -> {o.after.mean:.3f}" for o in outcomes))
    table.add_row("gain (95 % interval)", *(f"{g.mean:+.3f} ({g.bounds(3)})" for g in gains))
    for name, title in _EXTRAS.items():
        means = ((o.before.extra_mean(name), o.after.extra_mean(name)) for o in outcomes)
        table.add_row(title, *(f"{old:.3f} -> {new:.3f}" for old, new in means))
    table.add_row("iterations, time", *(_length(result) for result in results.values()))
    output = Console(file=sys.stdout)
    output.print(table)
    for result in results.values():
        _print_files(output, result)


def _length(result: DemoResult) -> str:
    return f"{result.outcome.iterations} iterations, {result.seconds:.0f} s in all"


def _print_files(output: Console, result: DemoResult) -> None:
    for warning in result.outcome.warnings:
        output.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    for path in (result.lora, *result.pictures):
        output.print(f"  {path}", highlight=False, soft_wrap=True)
