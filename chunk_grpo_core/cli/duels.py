"""``chunk-grpo duels``: was it worth it? Blind duels between a run's LoRA and its base model."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
import secrets
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from ..measure.both import on_both_sides, sides_of
from ..measure.duels import OTHER_NOISE, Duel, answered, drawn_duels, duel_pictures
from ..prompts.example import examples_of
from ..runs.duels import change_duels, duels_view, keep_duels, newest_duels, read_duels
from ..runs.held_out import check_held_out
from ..runs.load import load_policy, load_prompts
from ..runs.outcome import EVALUATION_SEED
from ..train.batch_limit import BatchLimit
from .flags import give_one
from .measure import Opened, open_source
from .outcome import AsJson
from .progress import ProgressBar, clear_errors

__all__ = ["duels"]

_FOLDER = "duels"
_COUNT = 20


def duels(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    count: Annotated[
        int | None, typer.Option(min=1, max=200, help=f"Duels to draw, by default {_COUNT}.")
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(
            help="Answers to the newest duels, a digit for each: 1 the left picture is better, 2 "
            "the right one, 0 the same. Example: 1201121."
        ),
    ] = None,
    result: Annotated[
        bool,
        typer.Option("--result", help="Say what came of the newest duels, answered anywhere."),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fixes prompts and sides. Default: drawn.")
    ] = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Was it worth it? Judge pairs of pictures, base against LoRA, without knowing which is which.

    The first call draws pairs on held-out prompts, both of a pair from the same noise, into
    RUN/duels. The second, with --answers, says how often you preferred the LoRA, with an interval,
    and keeps it. Evaluate LoRA in ComfyUI draws the same duels and shows them one by one.
    """
    with clear_errors("nothing was written"), ProgressBar() as bar:
        give_one(answers=answers, result=result, count=count)
        give_one(answers=answers, result=result, seed=seed)
        if not run.is_dir():
            raise FileNotFoundError(f"there is no folder {run}; give that of a finished run")
        if answers is not None:
            done = change_duels(_newest(run), lambda drawn: answered(drawn, answers)[0])
            return _said(done, as_json)
        if result:
            return _said(_finished(_newest(run)), as_json)
        opened = open_source(run, None)
        if opened.lora is None:
            raise ValueError(
                f"{run} has no lora.safetensors, which a run has at its end; finish it"
            )
        held_out = load_prompts(opened.config).held_out
        check_held_out(held_out)
        count = count or _COUNT
        order = secrets.randbits(32) if seed is None else seed
        chosen = drawn_duels(
            [example.text for example in examples_of(held_out)],
            count,
            EVALUATION_SEED + OTHER_NOISE,
            order,
        )
        folder = keep_duels(run / _FOLDER, chosen, *_both_sides(opened, chosen, bar))
    if as_json:
        return {"folder": str(folder), "duels": count}
    typer.echo(
        f"{count} pairs are in {folder}. Look at them in order (01.png, ...) and answer each with "
        f"1 (left), 2 (right) or 0 (the same):\n  chunk-grpo duels {run} --answers 1201..."
    )
    return None


def _both_sides(
    opened: Opened, chosen: list[Duel], bar: ProgressBar
) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures of the base model, and with the LoRA."""
    config = opened.config
    assert opened.lora is not None
    prompts = examples_of([duel.prompt for duel in chosen])
    policy = load_policy(config, prompts, lora=opened.lora)
    opened.check_model(policy)
    settings, limit = config.settings, BatchLimit(size=config.settings.batch_size)
    return on_both_sides(
        sides_of(policy),
        lambda side, progress: duel_pictures(
            side,
            chosen,
            settings.grid,
            solver=settings.ode_solver,
            limit=limit,
            progress=progress,
        ),
        bar.update,
    )


def _newest(run: Path) -> Path:
    folder = newest_duels(run / _FOLDER)
    if folder is None:
        raise FileNotFoundError(
            f"{run} has no duels to answer; draw them with: chunk-grpo duels {run}"
        )
    return folder


def _finished(folder: Path) -> list[Duel]:
    drawn = read_duels(folder)
    if left := sum(duel.answer is None for duel in drawn):
        raise ValueError(f"{left} of the {len(drawn)} duels in {folder} are not answered yet")
    return drawn


def _said(done: list[Duel], as_json: bool) -> dict[str, object] | None:
    result = duels_view(done)["result"]
    if not as_json:
        return typer.echo(result["text"])
    interval = [result.pop("low"), result.pop("high")]
    return {**result, "share_ci95": interval}
